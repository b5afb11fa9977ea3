use proptest::prelude::*;

use super::*;

const FEATURES: u64 = 1 << 5 | F_EVENT_IDX | F_RING_PACKED | F_RING_RESET;

fn transport() -> Transport {
    Transport::new(FEATURES, &[256, 128], 3)
}

fn write16(transport: &mut Transport, offset: usize, value: u16) {
    assert_eq!(transport.write(offset, &value.to_le_bytes()), Effect::Nothing);
}

fn write32(transport: &mut Transport, offset: usize, value: u32) {
    assert_eq!(transport.write(offset, &value.to_le_bytes()), Effect::Nothing);
}

fn read16(transport: &Transport, offset: usize) -> u16 {
    let mut bytes = [0; 2];
    transport.read(offset, &mut bytes);
    u16::from_le_bytes(bytes)
}

fn status_of(transport: &Transport) -> u8 {
    let mut bytes = [0];
    transport.read(field::STATUS, &mut bytes);
    bytes[0]
}

fn negotiate(transport: &mut Transport, features: u64) {
    let _ = transport.write(field::STATUS, &[status::ACKNOWLEDGE | status::DRIVER]);
    for word in 0..2 {
        write32(transport, field::DRIVER_FEATURE_SELECT, word);
        write32(transport, field::DRIVER_FEATURE, (features >> (32 * word)) as u32);
    }
    let accepted = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
    assert_eq!(transport.write(field::STATUS, &[accepted]), Effect::Nothing);
}

fn enable(transport: &mut Transport, queue: u16, size: u16) {
    write16(transport, field::QUEUE_SELECT, queue);
    write16(transport, field::QUEUE_SIZE, size);
    write16(transport, field::QUEUE_VECTOR, queue + 1);
    for (offset, value) in
        [(field::QUEUE_DESC, 0x1000u64), (field::QUEUE_DRIVER, 0x2000), (field::QUEUE_DEVICE, 0x1_0000_3000)]
    {
        write32(transport, offset, value as u32);
        write32(transport, offset + 4, (value >> 32) as u32);
    }
    write16(transport, field::QUEUE_ENABLE, 1);
}

fn driver_ok(transport: &mut Transport) -> Effect {
    let all = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
    transport.write(field::STATUS, &[all])
}

#[test]
fn a_driver_that_follows_the_steps_gets_the_queues_it_enabled() {
    let mut transport = transport();
    negotiate(&mut transport, F_VERSION_1 | F_EVENT_IDX);
    enable(&mut transport, 1, 64);
    let queue = QueueSetup {
        index: 1,
        size: 64,
        vector: 2,
        enabled: true,
        desc: 0x1000,
        avail: 0x2000,
        used: 0x1_0000_3000,
    };
    let activation = Activation { features: F_VERSION_1 | F_EVENT_IDX, queues: vec![queue] };
    assert_eq!(driver_ok(&mut transport), Effect::Activate(activation));
    assert!(transport.is_live());
}

#[test]
fn features_that_were_not_offered_are_not_accepted() {
    for features in [F_VERSION_1 | 1 << 6, FEATURES] {
        let mut transport = transport();
        negotiate(&mut transport, features);
        assert_eq!(status_of(&transport) & status::FEATURES_OK, 0, "{features:#x}");
        assert_eq!(driver_ok(&mut transport), Effect::Nothing, "{features:#x}");
    }
}

#[test]
fn features_are_settled_once() {
    let mut transport = transport();
    negotiate(&mut transport, F_VERSION_1);
    write32(&mut transport, field::DRIVER_FEATURE_SELECT, 0);
    write32(&mut transport, field::DRIVER_FEATURE, FEATURES as u32);
    let Effect::Activate(activation) = driver_ok(&mut transport) else { panic!("not live") };
    assert_eq!(activation.features, F_VERSION_1);
}

#[test]
fn driver_ok_comes_once() {
    let mut transport = transport();
    negotiate(&mut transport, F_VERSION_1);
    assert!(matches!(driver_ok(&mut transport), Effect::Activate(_)));
    assert_eq!(driver_ok(&mut transport), Effect::Nothing);
}

#[test]
fn an_enabled_queue_is_not_changed_any_more() {
    let mut transport = transport();
    negotiate(&mut transport, F_VERSION_1);
    enable(&mut transport, 0, 32);
    write16(&mut transport, field::QUEUE_SIZE, 64);
    write32(&mut transport, field::QUEUE_DESC, 0x9000);
    write16(&mut transport, field::QUEUE_ENABLE, 0);
    assert_eq!(read16(&transport, field::QUEUE_SIZE), 32);
    assert_eq!(read16(&transport, field::QUEUE_DESC), 0x1000);
    assert_eq!(read16(&transport, field::QUEUE_ENABLE), 1);
}

#[test]
fn a_size_that_is_too_large_or_no_power_of_two_is_not_taken() {
    let mut transport = transport();
    for size in [0, 3, 512, 0x8001] {
        write16(&mut transport, field::QUEUE_SIZE, size);
        assert_eq!(read16(&transport, field::QUEUE_SIZE), 256);
    }
}

#[test]
fn a_packed_queue_may_have_any_size_that_is_not_too_large() {
    let mut transport = transport();
    negotiate(&mut transport, F_VERSION_1 | F_RING_PACKED);
    for (size, taken) in [(255, 255), (3, 3), (0, 3), (257, 3), (1, 1)] {
        write16(&mut transport, field::QUEUE_SIZE, size);
        assert_eq!(read16(&transport, field::QUEUE_SIZE), taken);
    }
}

/// A device with queue 0 live, whose driver may reset queues.
fn live(features: u64) -> Transport {
    let mut transport = transport();
    negotiate(&mut transport, F_VERSION_1 | features);
    enable(&mut transport, 0, 64);
    assert!(matches!(driver_ok(&mut transport), Effect::Activate(_)));
    transport
}

fn reset_queue(transport: &mut Transport, queue: u16) -> Effect {
    write16(transport, field::QUEUE_SELECT, queue);
    transport.write(field::QUEUE_RESET, &[1, 0])
}

#[test]
fn a_queue_that_was_reset_is_as_it_was_found_and_can_be_enabled_with_other_parameters() {
    let mut transport = live(F_RING_RESET | F_EVENT_IDX);
    for size in [32, 256, 8] {
        assert_eq!(reset_queue(&mut transport, 0), Effect::StopQueue(0));
        for (register, value) in [
            (field::QUEUE_RESET, 0),
            (field::QUEUE_ENABLE, 0),
            (field::QUEUE_SIZE, 256),
            (field::QUEUE_VECTOR, NO_VECTOR),
            (field::QUEUE_DESC, 0),
        ] {
            assert_eq!(read16(&transport, register), value, "{register:#x}");
        }
        assert_eq!(reset_queue(&mut transport, 0), Effect::Nothing, "it is not enabled");
        write16(&mut transport, field::QUEUE_SIZE, size);
        write16(&mut transport, field::QUEUE_VECTOR, 2);
        write32(&mut transport, field::QUEUE_DESC, 0x5000);
        let features = F_VERSION_1 | F_RING_RESET | F_EVENT_IDX;
        let (index, vector, enabled, desc) = (0, 2, true, 0x5000);
        let queue = QueueSetup { index, size, vector, enabled, desc, avail: 0, used: 0 };
        let started = transport.write(field::QUEUE_ENABLE, &[1, 0]);
        assert_eq!(started, Effect::StartQueue { features, queue });
        assert_eq!(read16(&transport, field::QUEUE_ENABLE), 1);
    }
    assert!(transport.is_live());
}

#[test]
fn only_a_driver_that_took_the_feature_resets_queues_or_enables_more() {
    for (features, stops, starts) in [(0, false, false), (F_RING_RESET, true, true)] {
        let mut transport = live(features);
        write16(&mut transport, field::QUEUE_SELECT, 1);
        let started = transport.write(field::QUEUE_ENABLE, &[1, 0]);
        assert_eq!(matches!(started, Effect::StartQueue { queue: QueueSetup { index: 1, .. }, .. }), starts);
        assert_eq!(reset_queue(&mut transport, 0) == Effect::StopQueue(0), stops);
        assert_eq!(reset_queue(&mut transport, 2), Effect::Nothing, "no such queue");
    }
}

#[test]
fn a_queue_is_reset_neither_before_the_device_is_live_nor_once_it_is_broken() {
    let mut transport = transport();
    negotiate(&mut transport, F_VERSION_1 | F_RING_RESET);
    enable(&mut transport, 0, 64);
    assert_eq!(reset_queue(&mut transport, 0), Effect::Nothing);
    assert!(matches!(driver_ok(&mut transport), Effect::Activate(_)));
    for other in [&[0_u8, 0][..], &[2, 0], &[1], &[1, 0, 0, 0]] {
        assert_eq!(transport.write(field::QUEUE_RESET, other), Effect::Nothing, "{other:?}");
    }
    transport.broke();
    assert_eq!(reset_queue(&mut transport, 0), Effect::Nothing);
}

#[test]
fn a_vector_that_is_not_there_reads_back_as_none() {
    let mut transport = transport();
    write16(&mut transport, field::CONFIG_VECTOR, 3);
    assert_eq!(transport.config_vector(), NO_VECTOR);
    write16(&mut transport, field::CONFIG_VECTOR, 2);
    assert_eq!(transport.config_vector(), 2);
    write16(&mut transport, field::QUEUE_VECTOR, 99);
    assert_eq!(read16(&transport, field::QUEUE_VECTOR), NO_VECTOR);
}

#[test]
fn a_queue_that_is_not_there_has_size_zero_and_takes_nothing() {
    let mut transport = transport();
    write16(&mut transport, field::QUEUE_SELECT, 2);
    assert_eq!(read16(&transport, field::QUEUE_SIZE), 0);
    write16(&mut transport, field::QUEUE_ENABLE, 1);
    assert_eq!(read16(&transport, field::QUEUE_ENABLE), 0);
}

#[test]
fn a_reset_forgets_everything_the_driver_wrote() {
    let mut transport = transport();
    negotiate(&mut transport, F_VERSION_1);
    enable(&mut transport, 0, 32);
    let _ = driver_ok(&mut transport);
    assert_eq!(transport.write(field::STATUS, &[0]), Effect::Reset);
    assert!(!transport.is_live());
    assert_eq!((status_of(&transport), read16(&transport, field::QUEUE_ENABLE)), (0, 0));
    assert_eq!(read16(&transport, field::QUEUE_SIZE), 256);
}

#[test]
fn a_device_that_could_not_start_says_so_until_the_reset() {
    let mut transport = transport();
    negotiate(&mut transport, F_VERSION_1);
    let _ = driver_ok(&mut transport);
    transport.broke();
    assert_ne!(status_of(&transport) & status::NEEDS_RESET, 0);
    assert_eq!(driver_ok(&mut transport), Effect::Nothing);
    let _ = transport.write(field::STATUS, &[status_of(&transport) | status::FAILED]);
    assert_ne!(status_of(&transport) & status::FAILED, 0);
    assert_eq!(transport.write(field::STATUS, &[0]), Effect::Reset);
    assert_eq!(status_of(&transport), 0);
}

#[test]
fn a_driver_cannot_set_needs_reset() {
    let mut transport = transport();
    let _ = transport.write(field::STATUS, &[status::NEEDS_RESET]);
    assert_eq!(status_of(&transport), 0);
}

proptest! {
    /// Whatever is written: no panic, and a queue that the device gets is within what it offered.
    #[test]
    fn no_order_of_writes_gives_a_queue_beyond_the_offer(
        writes in prop::collection::vec((0usize..0x48, prop::collection::vec(any::<u8>(), 0..10)), 0..200),
    ) {
        let mut transport = transport();
        for (offset, data) in writes {
            let effect = transport.write(offset, &data);
            let mut bytes = [0; 12];
            transport.read(offset, &mut bytes);
            let (features, queues) = match effect {
                Effect::Activate(Activation { features, queues }) => (features, queues),
                Effect::StartQueue { features, queue } => (features, vec![queue]),
                Effect::Nothing | Effect::Reset | Effect::StopQueue(_) => continue,
            };
            prop_assert_eq!(features & !(FEATURES | F_VERSION_1), 0);
            for queue in queues {
                prop_assert!(queue.index < 2 && (1..=256).contains(&queue.size));
                prop_assert!(queue.vector < 3 || queue.vector == NO_VECTOR);
            }
        }
    }
}
