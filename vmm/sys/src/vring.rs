//! The split virtqueue in guest memory (virtio 1.3, 2.7), seen from the device.

/// A split ring with its host addresses resolved once.
#[derive(Debug)]
pub struct SplitRing;
