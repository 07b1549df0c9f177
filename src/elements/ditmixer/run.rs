// SPDX-License-Identifier: MPL-2.0
//! Frames of two streams on their way into chunks for the model.
//!
//! A run begins where the mix leaves one stream and ends where it arrives at one. Its first chunk is a single frame,
//! if there is one the last before the mix began: the model then continues what was shown. Later chunks are whole; what
//! a chunk has beyond the end of the mix is made and not shown.

use std::sync::Arc;

use crate::pipeline::{MixFrame, RgbFrame};

/// What an output frame is made of.
#[derive(Debug, Clone)]
pub enum Moment {
    /// A mix of two streams, by their pads' names.
    Pair { pads: [String; 2], frame: MixFrame },
    /// Exactly one stream.
    One { pad: String, picture: Arc<RgbFrame> },
}

/// Frames that go to the model together.
#[derive(Debug)]
pub struct Chunk {
    pub frames: Vec<MixFrame>,
    /// For each frame, the number of the output frame that shows it.
    pub shown_by: Vec<Option<u64>>,
    /// It does not continue the chunk before.
    pub restart: bool,
}

#[derive(Debug, Default)]
pub struct Run {
    pads: Option<[String; 2]>,
    frames: Vec<MixFrame>,
    shown_by: Vec<Option<u64>>,
    /// Its first chunk is out.
    under_way: bool,
    last: Option<MixFrame>,
}

impl Run {
    /// Whether frames of single streams are needed too.
    pub fn is_on(&self) -> bool {
        self.pads.is_some()
    }

    /// Whether these two streams are under way.
    pub fn is_of(&self, pads: &[String; 2]) -> bool {
        self.pads.as_ref() == Some(pads)
    }

    /// Adds what output frame `number` is made of, and `before`, what the one before it showed; chunks of `length`
    /// frames come out.
    pub fn add(
        &mut self,
        number: u64,
        moment: &Moment,
        before: Option<(&str, Arc<RgbFrame>)>,
        length: usize,
    ) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        match moment {
            Moment::Pair { pads, frame } => {
                if self.pads.as_ref() != Some(pads) {
                    chunks.extend(self.finish(length));
                    self.pads = Some(pads.clone());
                    if let Some(lead) = lead(pads, frame, before) {
                        chunks.extend(self.push(lead, None, length));
                    }
                }
                chunks.extend(self.push(frame.clone(), Some(number), length));
            }
            Moment::One { pad, picture } => {
                let share = self.pads.as_ref().and_then(|[a, b]| match pad {
                    pad if pad == a => Some(0.0),
                    pad if pad == b => Some(1.0),
                    _ => None,
                });
                match (share, &self.last) {
                    (Some(share), Some(last)) if !self.frames.is_empty() => {
                        let mut frame = MixFrame { share, ..last.clone() };
                        if share == 0.0 {
                            frame.a = picture.clone();
                        } else {
                            frame.b = picture.clone();
                        }
                        chunks.extend(self.push(frame, None, length));
                    }
                    (Some(_), _) => (),
                    (None, _) => chunks.extend(self.finish(length)),
                }
                if self.frames.is_empty() {
                    self.stop();
                }
            }
        }
        chunks
    }

    /// Ends the run; its last chunk is filled with the last frame.
    pub fn finish(&mut self, length: usize) -> Option<Chunk> {
        let mut chunk = None;
        while let (false, Some(last)) = (self.frames.is_empty(), self.last.clone()) {
            chunk = self.push(last, None, length);
        }
        self.stop();
        chunk
    }

    /// Forgets the run; what is begun is not finished.
    pub fn stop(&mut self) {
        *self = Self::default();
    }

    fn push(&mut self, frame: MixFrame, shown_by: Option<u64>, length: usize) -> Option<Chunk> {
        self.last = Some(frame.clone());
        self.frames.push(frame);
        self.shown_by.push(shown_by);
        let needed = if self.under_way { length.max(1) } else { 1 };
        (self.frames.len() >= needed).then(|| Chunk {
            frames: std::mem::take(&mut self.frames),
            shown_by: std::mem::take(&mut self.shown_by),
            restart: !std::mem::replace(&mut self.under_way, true),
        })
    }
}

/// The frame before a run, where it showed one of the two streams.
fn lead(
    [a, b]: &[String; 2],
    frame: &MixFrame,
    before: Option<(&str, Arc<RgbFrame>)>,
) -> Option<MixFrame> {
    match before? {
        (pad, picture) if pad == a => Some(MixFrame { a: picture, share: 0.0, ..frame.clone() }),
        (pad, picture) if pad == b => Some(MixFrame { b: picture, share: 1.0, ..frame.clone() }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(value: u8) -> Arc<RgbFrame> {
        Arc::new(RgbFrame { width: 1, height: 1, data: vec![value; 3] })
    }

    fn pair(share: f64) -> Moment {
        let frame = MixFrame { a: picture(1), b: picture(2), share };
        Moment::Pair { pads: ["x".into(), "y".into()], frame }
    }

    fn one(pad: &str) -> Moment {
        Moment::One { pad: pad.into(), picture: picture(9) }
    }

    fn shown(chunks: &[Chunk]) -> Vec<Vec<Option<u64>>> {
        chunks.iter().map(|chunk| chunk.shown_by.clone()).collect()
    }

    #[test]
    fn a_run_continues_the_frame_before_it_and_ends_with_a_whole_chunk() {
        let mut run = Run::default();
        assert!(run.add(0, &one("x"), None, 4).is_empty() && !run.is_on());
        let lead = run.add(1, &pair(0.2), Some(("x", picture(7))), 4);
        assert_eq!(shown(&lead), [[None]]);
        assert_eq!((lead[0].frames[0].a.data[0], lead[0].frames[0].share), (7, 0.0));
        assert!(lead[0].restart);
        assert!(run.add(2, &pair(0.6), None, 4).is_empty());
        assert!(run.add(3, &one("y"), None, 4).is_empty() && run.is_on());
        let last = run.add(4, &one("y"), None, 4);
        assert_eq!(shown(&last), [[Some(1), Some(2), None, None]]);
        assert_eq!(last[0].frames[3].b.data[0], 9);
        assert!(!last[0].restart && !run.is_on());
    }

    #[test]
    fn without_a_frame_before_it_a_run_begins_with_its_own_first() {
        let mut run = Run::default();
        let first = run.add(0, &pair(0.5), None, 4);
        assert_eq!(shown(&first), [[Some(0)]]);
        assert!(run.add(1, &pair(0.5), None, 4).is_empty());
        let rest = run.finish(4).unwrap();
        assert_eq!(rest.shown_by, [Some(1), None, None, None]);
        assert!(run.finish(4).is_none());
    }

    #[test]
    fn other_streams_end_a_run() {
        let mut run = Run::default();
        run.add(0, &pair(0.5), None, 4);
        run.add(1, &pair(0.5), None, 4);
        let Moment::Pair { frame, .. } = pair(0.3) else { unreachable!() };
        let other = Moment::Pair { pads: ["y".into(), "z".into()], frame };
        let chunks = run.add(2, &other, None, 4);
        assert_eq!(shown(&chunks), [vec![Some(1), None, None, None], vec![Some(2)]]);
        assert!(chunks[1].restart);
        run.add(3, &one("w"), None, 4);
        assert!(!run.is_on());
    }
}
