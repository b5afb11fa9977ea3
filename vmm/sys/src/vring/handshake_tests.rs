use proptest::prelude::*;

use super::*;

#[test]
fn events_are_passed_across_the_wrap_of_the_index() {
    assert!(crossed(u16::MAX, 0, u16::MAX));
    assert!(crossed(u16::MAX, 3, u16::MAX - 1));
    assert!(!crossed(1, 1, u16::MAX));
    assert!(crossed(0, 1, u16::MAX));
    assert!(!crossed(5, 5, 4));
}

#[test]
fn a_place_counts_its_laps_in_any_size() {
    for size in [1, 2, 3, 7, 256, 32_767, 32_768] {
        let mut place = Place::START;
        for lap in 0..4 {
            assert_eq!((place.index(), place.wrap()), (0, lap % 2 == 0), "{size}");
            place = place.advance(size - 1, size);
            assert_eq!((place.index(), place.wrap()), (size - 1, lap % 2 == 0), "{size}");
            place = place.advance(1, size);
        }
        assert_eq!(place.advance(size, size).advance(size, size), place);
    }
}

fn events(word: &AtomicU32) -> PackedEvents<'_, Machine> {
    PackedEvents { word, event_idx: true }
}

#[test]
fn flags_that_are_not_to_be_are_told_always() {
    let word = AtomicU32::new(3 << 16);
    assert!(events(&word).wanted(Place(0), 1, 4));
    word.store(2 << 16 | 3, Ordering::Relaxed);
    let without = PackedEvents::<Machine> { word: &word, event_idx: false };
    assert!(without.wanted(Place(0), 1, 4), "a place without EVENT_IDX");
    assert!(!events(&word).wanted(Place(0), 1, 4));
}

proptest! {
    #[test]
    fn crossing_agrees_with_counting(event: u16, old: u16, steps in 0_u16..40_000) {
        let new = old.wrapping_add(steps);
        let passed = (0..steps).any(|step| old.wrapping_add(step) == event);
        prop_assert_eq!(crossed(event, new, old), passed);
    }

    /// An event that lies within the lap ahead of the last that was shown, as every sleeper asks for.
    #[test]
    fn a_packed_event_agrees_with_counting(
        size in prop_oneof![1_u16..40, 32_700_u16..=32_768],
        start: u16,
        wrap: bool,
        steps: u16,
        ahead: u16,
    ) {
        let begin = Place((start % size) | u16::from(wrap) << 15);
        let (steps, ahead) = (steps % size + 1, ahead % size);
        let word = AtomicU32::new(0);
        events(&word).ask(begin.advance(ahead, size));
        let told = events(&word).wanted(begin.advance(steps, size), steps, size);
        prop_assert_eq!(told, ahead < steps);
    }

    #[test]
    fn no_event_makes_a_packed_ring_stumble(word: u32, new: u16, steps: u16, size in 1_u16..=32_768) {
        let word = AtomicU32::new(word);
        events(&word).wanted(Place((new % size) | (new & 1 << 15)), steps % size + 1, size);
    }
}
