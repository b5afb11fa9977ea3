//! The handshake in every interleaving, and in every order that the memory model lets its loads and stores be seen in. One
//! thread shows entries and tells as asked, the other takes them and sleeps until it is told; a wakeup is lost when it sleeps
//! with an entry there and nobody left to tell it. The lines that ask, decide and order are those that rings are served
//! with. Who shows is a driver that notifies, or a device that interrupts: the same lines.

use std::sync::Arc;

use loom::sync::atomic::{AtomicU16, AtomicU32};
use loom::sync::{Condvar, Mutex};

use super::*;

/// Memory as the model has it.
struct Modelled;

/// The same with a fence forgotten: what the model must find.
struct Unfenced;

impl Memory for Modelled {
    type Word16 = AtomicU16;
    type Word32 = AtomicU32;
    fn full_fence() {
        loom::sync::atomic::fence(Ordering::SeqCst);
    }
}

impl Memory for Unfenced {
    type Word16 = AtomicU16;
    type Word32 = AtomicU32;
    fn full_fence() {}
}

impl Word<u16> for AtomicU16 {
    fn load(&self, order: Ordering) -> u16 {
        AtomicU16::load(self, order)
    }
    fn store(&self, value: u16, order: Ordering) {
        AtomicU16::store(self, value, order);
    }
}

impl Word<u32> for AtomicU32 {
    fn load(&self, order: Ordering) -> u32 {
        AtomicU32::load(self, order)
    }
    fn store(&self, value: u32, order: Ordering) {
        AtomicU32::store(self, value, order);
    }
}

/// An eventfd whose poll is armed: a ring before the wait ends the wait.
struct Bell {
    state: Mutex<BellState>,
    heard: Condvar,
}

struct BellState {
    rang: bool,
    /// Who may still ring.
    ringers: usize,
}

impl Bell {
    fn new(ringers: usize) -> Bell {
        Bell { state: Mutex::new(BellState { rang: false, ringers }), heard: Condvar::new() }
    }

    fn ring(&self) {
        self.state.lock().unwrap().rang = true;
        self.heard.notify_one();
    }

    /// One ringer has shown and told all that it ever will.
    fn leave(&self) {
        self.state.lock().unwrap().ringers -= 1;
        self.heard.notify_one();
    }

    /// `false`: nobody rang, and nobody will.
    fn wait(&self) -> bool {
        let mut state = self.state.lock().unwrap();
        while !state.rang && state.ringers > 0 {
            state = self.heard.wait(state).unwrap();
        }
        std::mem::take(&mut state.rang)
    }
}

/// One direction of a ring in one of its four forms. Entries are counted from the first that is shown.
trait Direction: Send + Sync + 'static {
    fn new(event_idx: bool) -> Self;
    /// Makes `count` entries visible from the one at `at`.
    fn show(&self, at: u16, count: u16);
    fn wanted(&self, at: u16, count: u16) -> bool;
    fn look(&self, at: u16) -> bool;
    fn ask(&self, at: u16);
    fn refuse(&self, at: u16);
}

/// The index is about to wrap around.
const SPLIT_START: u16 = u16::MAX;

struct Split {
    index: AtomicU16,
    flags: AtomicU16,
    event: AtomicU16,
    event_idx: bool,
}

impl Split {
    fn events(&self) -> SplitEvents<'_, Modelled> {
        SplitEvents { flags: &self.flags, event: &self.event, event_idx: self.event_idx }
    }
}

impl Direction for Split {
    fn new(event_idx: bool) -> Split {
        let word = AtomicU16::new;
        // The event was passed before: nothing is told of until it is asked for.
        Split {
            index: word(SPLIT_START),
            flags: word(0),
            event: word(SPLIT_START.wrapping_sub(1)),
            event_idx,
        }
    }
    fn show(&self, at: u16, count: u16) {
        self.index.store(SPLIT_START.wrapping_add(at + count), Ordering::Release);
    }
    fn wanted(&self, at: u16, count: u16) -> bool {
        let old = SPLIT_START.wrapping_add(at);
        self.events().wanted(old, old.wrapping_add(count))
    }
    fn look(&self, at: u16) -> bool {
        self.index.load(Ordering::Acquire) != SPLIT_START.wrapping_add(at)
    }
    fn ask(&self, at: u16) {
        self.events().ask(SPLIT_START.wrapping_add(at));
    }
    fn refuse(&self, at: u16) {
        self.events().refuse(SPLIT_START.wrapping_add(at));
    }
}

const PACKED_SIZE: u16 = 3;
/// The last entry of the ring: the next lap begins with the second.
const PACKED_START: Place = Place(1 << 15 | 2);

struct Packed {
    /// Of each descriptor, the lap that it was last shown in.
    laps: [AtomicU16; PACKED_SIZE as usize],
    word: AtomicU32,
    event_idx: bool,
}

impl Packed {
    fn events(&self) -> PackedEvents<'_, Modelled> {
        PackedEvents { word: &self.word, event_idx: self.event_idx }
    }
    fn place(at: u16) -> Place {
        PACKED_START.advance(at, PACKED_SIZE)
    }
    fn lap(&self, place: Place) -> &AtomicU16 {
        &self.laps[usize::from(place.index())]
    }
}

impl Direction for Packed {
    fn new(event_idx: bool) -> Packed {
        // The first lap, whose counter is 1, filled the first two entries.
        let laps = [1, 1, 0].map(AtomicU16::new);
        Packed { laps, word: AtomicU32::new(0), event_idx }
    }
    fn show(&self, at: u16, count: u16) {
        // The first of them last, as both sides do.
        for step in (0..count).rev() {
            let place = Self::place(at + step);
            self.lap(place).store(place.wrap().into(), Ordering::Release);
        }
    }
    fn wanted(&self, at: u16, count: u16) -> bool {
        self.events().wanted(Self::place(at + count), count, PACKED_SIZE)
    }
    fn look(&self, at: u16) -> bool {
        let place = Self::place(at);
        self.lap(place).load(Ordering::Acquire) == u16::from(place.wrap())
    }
    fn ask(&self, at: u16) {
        self.events().ask(Self::place(at));
    }
    fn refuse(&self, _at: u16) {
        self.events().refuse();
    }
}

/// Shows entries in batches of these sizes.
fn show_all<M: Memory>(ring: &impl Direction, bell: &Bell, batches: &[u16]) {
    let mut at = 0;
    for &count in batches {
        if show_then_ask::<M>(|| ring.show(at, count), || ring.wanted(at, count)) {
            bell.ring();
        }
        at += count;
    }
    bell.leave();
}

/// Takes `total` entries of each ring, as an IOThread does: one fence between all that is asked and all looks. `false`: it
/// slept for ever before it had them.
fn take_all<M: Memory>(rings: &[Arc<impl Direction>], bell: &Bell, total: u16) -> bool {
    let mut taken: Vec<u16> = rings.iter().map(|_| 0).collect();
    rings.iter().for_each(|ring| ring.refuse(0));
    loop {
        for (ring, at) in rings.iter().zip(&mut taken) {
            while *at < total && ring.look(*at) {
                *at += 1;
            }
        }
        if taken.iter().all(|at| *at == total) {
            return true;
        }
        let found = ask_then_look::<M, _, _>(
            &mut taken,
            |taken| rings.iter().zip(taken).for_each(|(ring, at)| ring.ask(*at)),
            |taken| rings.iter().zip(taken).any(|(ring, at)| *at < total && ring.look(*at)),
        );
        if !found && !bell.wait() {
            return false;
        }
        rings.iter().zip(&taken).for_each(|(ring, at)| ring.refuse(*at));
    }
}

/// How a model ends that lost a wakeup.
struct Lost;

/// What is tried.
#[derive(Debug, Clone, Copy)]
struct Case {
    event_idx: bool,
    queues: usize,
    /// What is shown on each queue.
    batches: &'static [u16],
    /// At most so many switches away from a thread that could go on; `None`: every interleaving.
    switches: Option<usize>,
}

/// Whether a wakeup is lost in some interleaving of those who show, one for each ring, with one who takes from all of them.
fn is_lost<D: Direction, Shows: Memory, Takes: Memory>(case: Case) -> bool {
    let Case { event_idx, queues, batches, switches } = case;
    let mut model = loom::model::Builder::new();
    model.preemption_bound = switches;
    let tried = std::panic::catch_unwind(|| {
        model.check(move || {
            let bell = Arc::new(Bell::new(queues));
            let rings: Vec<_> = (0..queues).map(|_| Arc::new(D::new(event_idx))).collect();
            for ring in &rings {
                let (ring, bell) = (Arc::clone(ring), Arc::clone(&bell));
                loom::thread::spawn(move || show_all::<Shows>(&*ring, &bell, batches));
            }
            if !take_all::<Takes>(&rings, &bell, batches.iter().sum()) {
                std::panic::panic_any(Lost);
            }
        });
    });
    match tried {
        Ok(()) => false,
        // What else loom finds is none of ours to expect.
        Err(panic) if panic.is::<Lost>() => true,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Every interleaving with one wakeup; those with a few switches where the sleeper goes to sleep again, and where it sleeps
/// on two queues.
fn cases() -> impl Iterator<Item = Case> {
    let shapes: [(usize, &[u16], _); 5] =
        [(1, &[1], None), (1, &[2], None), (1, &[1, 1], Some(3)), (1, &[1, 2], Some(3)), (2, &[1], Some(2))];
    [false, true].into_iter().flat_map(move |event_idx| {
        shapes.map(|(queues, batches, switches)| Case { event_idx, queues, batches, switches })
    })
}

#[test]
fn no_interleaving_of_a_split_ring_loses_a_wakeup() {
    cases().for_each(|case| assert!(!is_lost::<Split, Modelled, Modelled>(case), "{case:?}"));
}

#[test]
fn no_interleaving_of_a_packed_ring_loses_a_wakeup() {
    cases().for_each(|case| assert!(!is_lost::<Packed, Modelled, Modelled>(case), "{case:?}"));
}

/// A test of the test: with either fence gone some interleaving loses a wakeup, in each form, and the model finds it.
#[test]
fn a_fence_that_is_forgotten_is_found_in_every_form() {
    for case in cases() {
        assert!(is_lost::<Split, Unfenced, Modelled>(case), "split, by who shows: {case:?}");
        assert!(is_lost::<Split, Modelled, Unfenced>(case), "split, by who sleeps: {case:?}");
        assert!(is_lost::<Packed, Unfenced, Modelled>(case), "packed, by who shows: {case:?}");
        assert!(is_lost::<Packed, Modelled, Unfenced>(case), "packed, by who sleeps: {case:?}");
    }
}

#[test]
#[ignore = "minutes: every interleaving of two wakeups"]
fn no_interleaving_of_two_wakeups_loses_one() {
    for event_idx in [false, true] {
        let case = Case { event_idx, queues: 1, batches: &[1, 1], switches: None };
        assert!(!is_lost::<Split, Modelled, Modelled>(case), "{case:?}");
        assert!(!is_lost::<Packed, Modelled, Modelled>(case), "{case:?}");
    }
}
