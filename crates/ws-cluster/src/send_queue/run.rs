//! Frames that many clients get in the same order. They are kept once for all of these clients, and joined once.

use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};

use super::frames::MAX_JOINED;

/// Maximum number of frames of a run. Each longer run copies the list of the one before.
const MAX_FRAMES: usize = 64;

/// Maximum number of runs that one frame may continue or begin. A run is known by comparing it with each of them.
const MAX_NEXT: usize = 8;

/// Frames that some clients get in this order, with nothing between them.
pub(super) struct Run {
    frames: Vec<Bytes>,
    size: usize,
    joined: OnceLock<Bytes>,
}

impl Run {
    /// Returns the bytes of all frames.
    pub(super) fn joined(&self) -> &Bytes {
        self.joined.get_or_init(|| match &self.frames[..] {
            [one] => one.clone(),
            several => {
                let mut joined = BytesMut::with_capacity(self.size);
                several.iter().for_each(|frame| joined.extend_from_slice(frame));
                joined.freeze()
            }
        })
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }
}

/// A frame, or several joined, for many clients, and the runs that end with it.
pub(crate) struct SharedFrame {
    frame: Bytes,
    /// The runs, each with the one that it continues, if any.
    runs: Vec<(Option<Arc<Run>>, Arc<Run>)>,
}

impl SharedFrame {
    pub(crate) fn new(frame: Bytes) -> Self {
        Self { frame, runs: Vec::new() }
    }

    pub(super) fn frame(&self) -> &Bytes {
        &self.frame
    }

    pub(crate) fn size(&self) -> usize {
        self.frame.len()
    }

    /// Returns the run that continues `before` with this frame. `None` if it would be too long, or if too many clients
    /// differ in what they have got before.
    pub(super) fn run(&mut self, before: Option<&Arc<Run>>) -> Option<Arc<Run>> {
        let known = self.runs.iter().find(|(known, _)| known.as_ref().map(Arc::as_ptr) == before.map(Arc::as_ptr));
        if let Some((_, run)) = known {
            return Some(run.clone());
        }
        let size = before.map_or(0, |run| run.size) + self.frame.len();
        let is_long = before.is_some_and(|run| size > MAX_JOINED || run.frames.len() == MAX_FRAMES);
        if is_long || self.runs.len() == MAX_NEXT {
            return None;
        }
        let mut frames = Vec::with_capacity(before.map_or(0, |run| run.frames.len()) + 1);
        frames.extend(before.iter().flat_map(|run| &run.frames).cloned());
        frames.push(self.frame.clone());
        let run = Arc::new(Run { frames, size, joined: OnceLock::new() });
        self.runs.push((before.cloned(), run.clone()));
        Some(run)
    }
}
