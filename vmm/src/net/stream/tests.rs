use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::sync::mpsc;

use proptest::prelude::*;
use vm_memory::{Bytes as _, GuestAddress};
use vmprof_sys::memory::GuestRam;

use super::*;

fn pair() -> (UnixStream, FrameStream) {
    let (theirs, ours) = UnixStream::pair().unwrap();
    (theirs, FrameStream::new(ours.into()).unwrap())
}

fn encoded(frames: &[Vec<u8>]) -> Vec<u8> {
    frames.iter().flat_map(|frame| [&(frame.len() as u32).to_be_bytes()[..], frame].concat()).collect()
}

/// Every whole frame that is there now.
fn received(stream: &FrameStream) -> Vec<Vec<u8>> {
    let (mut receiver, mut found) = (stream.receiver(), Vec::new());
    loop {
        while let Some(frame) = receiver.peek() {
            found.push(frame.to_vec());
            receiver.pop();
        }
        if receiver.refill() != Refill::Bytes {
            return found;
        }
    }
}

fn frames_of(bytes: &[Vec<u8>]) -> (Arc<GuestRam>, VecDeque<Frame>) {
    let total: usize = bytes.iter().map(Vec::len).sum();
    let size = (total + 4096).next_multiple_of(4096);
    let ram = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), size)]).unwrap());
    let mut at = 0;
    let frame = |bytes: &Vec<u8>| {
        ram.write_slice(bytes, GuestAddress(at)).unwrap();
        let mut buffers = GuestBuffers::new(&ram);
        buffers.push(at, bytes.len() as u32).unwrap();
        at += bytes.len() as u64;
        Frame::new(buffers)
    };
    let frames = bytes.iter().map(frame).collect();
    (ram, frames)
}

#[test]
fn only_a_connected_stream_socket_is_one() {
    let (datagrams, _other) = UnixDatagram::pair().unwrap();
    let error = FrameStream::new(datagrams.into()).unwrap_err();
    assert!(matches!(error, NetError::NotAStream { source: None }), "{error}");
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
    for fd in [listener.into(), OwnedFd::from(std::fs::File::open("/dev/null").unwrap())] {
        assert!(matches!(FrameStream::new(fd), Err(NetError::NotAStream { source: Some(_) })));
    }
}

#[test]
fn frames_come_whole_wherever_the_stream_was_cut() {
    let frames: Vec<Vec<u8>> = [vec![1; 14], vec![], vec![3; 60], vec![4; 300]].into();
    let bytes = encoded(&frames);
    for cut in 0..=bytes.len() {
        let (mut theirs, stream) = pair();
        theirs.write_all(&bytes[..cut]).unwrap();
        let mut found = received(&stream);
        theirs.write_all(&bytes[cut..]).unwrap();
        // As the machine that follows: another clone.
        found.extend(received(&stream.clone()));
        assert_eq!(found, frames, "cut at {cut}");
        assert!(!stream.is_closed());
    }
}

#[test]
fn a_peer_that_closes_or_lies_ends_the_stream_and_is_told_once() {
    let longest = LONGEST_FRAME as u32;
    let cases: [(&[u8], StreamEnd); 5] = [
        (&[], StreamEnd::Closed),
        (&[0, 0], StreamEnd::Closed),
        (&[0, 0, 0, 20, 1, 2], StreamEnd::Closed),
        (&[0xff; 4], StreamEnd::Framing { bytes: u32::MAX }),
        (&(longest + 1).to_be_bytes(), StreamEnd::Framing { bytes: longest + 1 }),
    ];
    for (bytes, end) in cases {
        let (mut theirs, stream) = pair();
        let (tell, told) = mpsc::channel();
        let device = tell.clone();
        stream.on_close(move |end| tell.send(end.clone()).unwrap());
        stream.tell_device(move |end| device.send(end.clone()).unwrap());
        theirs.write_all(bytes).unwrap();
        assert!(received(&stream).is_empty());
        drop(theirs);
        assert!(received(&stream).is_empty() && received(&stream).is_empty());
        assert!(stream.is_closed());
        assert_eq!(stream.end(), Some(end.clone()));
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [end.clone(), end.clone()], "{bytes:?}");
        let (tell, told) = mpsc::channel();
        stream.on_close(move |end| tell.send(end.clone()).unwrap());
        assert_eq!(told.try_recv().unwrap(), end, "who asks later hears at once");
    }
}

#[test]
fn the_longest_frame_goes_both_ways() {
    let (theirs, stream) = pair();
    let frame = vec![7; LONGEST_FRAME];
    let mut writer = theirs.try_clone().unwrap();
    let bytes = encoded(std::slice::from_ref(&frame));
    std::thread::scope(|scope| {
        scope.spawn(move || writer.write_all(&bytes).unwrap());
        let mut found = Vec::new();
        while found.is_empty() {
            found = received(&stream);
        }
        assert_eq!(found, std::slice::from_ref(&frame));
    });
    let (_ram, mut frames) = frames_of(std::slice::from_ref(&frame));
    assert_eq!(stream.send(&mut frames), Sent { frames: 1, blocked: false });
    let mut found = vec![0; 4 + LONGEST_FRAME];
    (&theirs).read_exact(&mut found).unwrap();
    assert_eq!(found, encoded(&[frame]));
}

#[test]
fn a_socket_that_is_full_takes_the_rest_later_and_nothing_twice() {
    let (mut theirs, stream) = pair();
    let all: Vec<Vec<u8>> = (0..200_u32).map(|at| vec![at as u8; 1_000 + 37 * at as usize]).collect();
    let (_ram, mut frames) = frames_of(&all);
    let mut found = Vec::new();
    let mut blocked = 0;
    theirs.set_nonblocking(true).unwrap();
    while !frames.is_empty() || !lock(&stream.0.transmit).rest.is_empty() {
        let sent = stream.send(&mut frames);
        frames.drain(..sent.frames);
        if sent.blocked {
            blocked += 1;
            let mut some = [0; 10_007];
            let read = theirs.read(&mut some).unwrap();
            found.extend_from_slice(&some[..read]);
        }
    }
    drop(stream);
    theirs.set_nonblocking(false).unwrap();
    theirs.read_to_end(&mut found).unwrap();
    assert!(blocked > 10, "the socket was never full");
    assert!(found == encoded(&all));
}

#[test]
fn what_is_sent_to_nobody_ends_the_stream() {
    let (theirs, stream) = pair();
    drop(theirs);
    let (_ram, mut frames) = frames_of(&[vec![1; 60]]);
    assert_eq!(stream.send(&mut frames).frames, 0);
    assert_eq!(stream.end(), Some(StreamEnd::Closed));
}

proptest! {
    /// Frames of any length through reads of any size are the same frames, and any bytes at all end in frames or an end.
    #[test]
    fn parts_of_any_size_make_the_same_frames(
        sizes in proptest::collection::vec(0..3000_usize, 1..20),
        parts in proptest::collection::vec(1..5000_usize, 1..40),
    ) {
        let frames: Vec<Vec<u8>> = sizes.iter().zip(0_u8..).map(|(len, tag)| vec![tag; *len]).collect();
        let (mut theirs, stream) = pair();
        let bytes = encoded(&frames);
        let (mut at, mut found) = (0, Vec::new());
        for part in parts.iter().cycle() {
            let end = bytes.len().min(at + part);
            theirs.write_all(&bytes[at..end]).unwrap();
            found.extend(received(&stream));
            at = end;
            if at == bytes.len() {
                break;
            }
        }
        prop_assert_eq!(found, frames);
    }

    #[test]
    fn any_bytes_end_in_frames_or_in_an_end(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let (mut theirs, stream) = pair();
        theirs.write_all(&bytes).unwrap();
        drop(theirs);
        let found = received(&stream);
        prop_assert!(encoded(&found).len() <= bytes.len());
        prop_assert!(stream.is_closed());
    }

    /// However much of a batch was taken, what is left is exactly the rest of it.
    #[test]
    fn what_was_not_taken_is_left(sizes in proptest::collection::vec(0..90_usize, 1..6), permille in 0..=1000_usize) {
        let all: Vec<Vec<u8>> = sizes.iter().zip(1_u8..).map(|(len, tag)| vec![tag; *len]).collect();
        let (_ram, mut frames) = frames_of(&all);
        let bytes = encoded(&all);
        let taken = bytes.len() * permille / 1000;
        let mut transmit = Transmit::default();
        let done = transmit.account(taken, &mut frames);
        frames.drain(..done);
        let mut left = transmit.rest.to_vec();
        left.extend(encoded(&all[done..]));
        prop_assert_eq!(left, &bytes[taken..]);
    }
}
