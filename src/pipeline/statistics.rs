// SPDX-License-Identifier: MPL-2.0
//! What is measured on frames and latents to keep a stream steady: how much moves, and how colours and latents drift.

use tch::{Kind, Tensor};

use super::decode::RgbFrame;

/// Mean absolute difference of two pictures in [0, 1]; 1 where their sizes differ.
pub fn difference(a: &RgbFrame, b: &RgbFrame) -> f64 {
    if (a.width, a.height) != (b.width, b.height) || a.data.is_empty() {
        return 1.0;
    }
    let sum: u64 = a.data.iter().zip(&b.data).map(|(&a, &b)| u64::from(a.abs_diff(b))).sum();
    sum as f64 / (a.data.len() as f64 * 255.0)
}

/// How much moves in the frames of a stream, smoothed from chunk to chunk.
///
/// The measure and its scale are those of StreamDiffusionV2's noise controller: the largest root mean square difference of
/// neighbouring frames in [-1, 1], a fifth of the range counting as full motion.
#[derive(Debug, Clone, Copy, Default)]
pub struct Motion {
    level: Option<f64>,
}

impl Motion {
    const FULL: f64 = 0.2;
    /// Share of a new chunk in the smoothed level.
    const SHARE: f64 = 0.9;

    /// Takes in a chunk of frames, the last one of the chunk before first; returns the level in [0, 1].
    pub fn observe<'a>(&mut self, frames: impl IntoIterator<Item = &'a RgbFrame>) -> f64 {
        let mut frames = frames.into_iter();
        let mut largest = 0.0f64;
        if let Some(mut before) = frames.next() {
            for frame in frames {
                largest = largest.max(rms_difference(before, frame));
                before = frame;
            }
        }
        let now = (largest / Self::FULL).clamp(0.0, 1.0);
        let level = self.level.map_or(now, |level| Self::SHARE * now + (1.0 - Self::SHARE) * level);
        self.level = Some(level);
        level
    }
}

/// In units of [-1, 1].
fn rms_difference(a: &RgbFrame, b: &RgbFrame) -> f64 {
    if a.data.len() != b.data.len() || a.data.is_empty() {
        return 2.0;
    }
    let square = |(&a, &b): (&u8, &u8)| u64::from(a.abs_diff(b)).pow(2);
    let sum: u64 = a.data.iter().zip(&b.data).map(square).sum();
    (sum as f64 / a.data.len() as f64).sqrt() / 127.5
}

/// Holds the colours of a restyled stream where they were, relative to those of its input.
///
/// Each chunk's frames continue frames that were made before, so a small cast grows. The first chunk says how far the
/// style moves the mean of each channel and how much it stretches it; later chunks are brought back to that.
#[derive(Debug, Default)]
pub struct ColourLock {
    /// Distance of the means and ratio of the deviations, `[1, 3, 1, 1, 1]`.
    reference: Option<(Tensor, Tensor)>,
}

impl ColourLock {
    /// Most that a mean is moved, in [-1, 1].
    const FARTHEST: f64 = 0.25;

    /// Video `[1, 3, F, H, W]` made from `input` (of any number of frames), corrected by `amount` in [0, 1].
    pub fn apply(&mut self, input: &Tensor, video: &Tensor, amount: f64) -> Tensor {
        if amount <= 0.0 {
            self.reference = None;
            return video.shallow_clone();
        }
        let (input_mean, input_deviation) = channel_statistics(&input.to_device(video.device()));
        let (mean, deviation) = channel_statistics(video);
        let (shift, stretch) = (&mean - &input_mean, &deviation / &input_deviation);
        let Some((reference_shift, reference_stretch)) = &self.reference else {
            self.reference = Some((shift, stretch));
            return video.shallow_clone();
        };
        let back = (reference_shift - shift).clamp(-Self::FARTHEST, Self::FARTHEST) * amount;
        let scale = (reference_stretch / stretch).clamp(0.8, 1.25);
        let scale = (scale - 1.0) * amount + 1.0;
        ((video - &mean) * scale + &mean + back).clamp(-1.0, 1.0)
    }

    /// Lets the next chunk say what the style does.
    pub fn release(&mut self) {
        self.reference = None;
    }
}

/// Holds the latents of a stream from noise where its beginning had them.
///
/// Each block continues blocks that were made before, so what the transformer gets slightly wrong grows, until in a minute
/// stripes have swallowed the picture. Mean and deviation of each channel of a frame are brought back to what they were on
/// average in the first frames: adaptive instance normalisation (Huang and Belongie, arXiv 1703.06868) with the stream's
/// own beginning as the style. Both are those of the middle half of the frame's values: an object that leaves, comes in or grows
/// is no drift, and what makes up for it puts something in its place.
#[derive(Debug, Default)]
pub struct LatentLock {
    /// Sums over the first frames of their means and deviations, `[1, z, 1, 1, 1]`.
    sums: Option<(Tensor, Tensor)>,
    /// Frames in the sums.
    frames: i64,
    /// Frames still to come that say nothing.
    ignored: i64,
}

impl LatentLock {
    /// Latent frames that the beginning is the average of.
    const BEGINNING: i64 = 8;
    /// Latent frames that another prompt takes to arrive.
    const CHANGE: i64 = 8;

    /// The next latents `[1, z, t, h, w]` of the stream, corrected by `amount` in [0, 1].
    pub fn apply(&mut self, latents: &Tensor, amount: f64) -> Tensor {
        let frames = latents.size()[2];
        if amount <= 0.0 {
            return latents.shallow_clone();
        }
        if self.ignored > 0 {
            self.ignored -= frames;
            return latents.shallow_clone();
        }
        let (mean, deviation) = frame_statistics(latents);
        if self.frames < Self::BEGINNING {
            let sum = |value: &Tensor| value.sum_dim_intlist([2i64].as_slice(), true, Kind::Float);
            let (means, deviations) = (sum(&mean), sum(&deviation));
            self.sums = Some(match &self.sums {
                None => (means, deviations),
                Some(sums) => (&sums.0 + means, &sums.1 + deviations),
            });
            self.frames += frames;
            return latents.shallow_clone();
        }
        let Some((means, deviations)) = &self.sums else { return latents.shallow_clone() };
        let count = self.frames as f64;
        let scale = (deviations / count / &deviation - 1.0) * amount + 1.0;
        let back = (means / count - &mean) * amount;
        ((latents - &mean) * scale + mean + back).to_kind(latents.kind())
    }

    /// Lets the stream begin anew, for it is to show something else.
    pub fn release(&mut self) {
        if self.sums.is_some() || self.ignored > 0 {
            *self = Self { ignored: Self::CHANGE, ..Self::default() };
        }
    }

    /// The same tensors, not copies: nothing here changes one in place.
    pub fn shallow_clone(&self) -> Self {
        let sums = self.sums.as_ref().map(|(a, b)| (a.shallow_clone(), b.shallow_clone()));
        Self { sums, ..*self }
    }
}

/// Mean and standard deviation of the middle half of the values of each channel of each frame, `[1, z, t, 1, 1]`; the deviation
/// never vanishes.
fn frame_statistics(latents: &Tensor) -> (Tensor, Tensor) {
    let (sorted, _) = latents.to_kind(Kind::Float).flatten(3, 4).sort(3, false);
    let values = sorted.size()[3];
    let quarter = values / 4;
    let middle = sorted.narrow(3, quarter, values - 2 * quarter).unsqueeze(4);
    moments(&middle, &[3], 1e-3)
}

/// Mean and standard deviation of each channel, `[1, 3, 1, 1, 1]`; the deviation never vanishes.
fn channel_statistics(video: &Tensor) -> (Tensor, Tensor) {
    moments(&video.to_kind(Kind::Float), &[2, 3, 4], 0.02)
}

/// Mean and standard deviation along `dims`, which stay as 1; the deviation is at least `least`.
fn moments(values: &Tensor, dims: &[i64], least: f64) -> (Tensor, Tensor) {
    let mean = values.mean_dim(dims, true, Kind::Float);
    let centred = values - &mean;
    let deviation = (&centred * &centred).mean_dim(dims, true, Kind::Float).sqrt();
    (mean, deviation.clamp_min(least))
}

#[cfg(test)]
mod tests {
    use super::super::torch_noise;
    use super::*;

    fn flat(value: u8) -> RgbFrame {
        RgbFrame { width: 4, height: 4, data: vec![value; 48] }
    }

    #[test]
    fn difference_is_a_share_of_the_range() {
        assert_eq!(difference(&flat(10), &flat(10)), 0.0);
        assert_eq!(difference(&flat(0), &flat(255)), 1.0);
        let other = RgbFrame { width: 8, height: 2, data: vec![0; 48] };
        assert_eq!(difference(&flat(0), &other), 1.0);
    }

    #[test]
    fn motion_rises_and_falls() {
        let mut motion = Motion::default();
        assert_eq!(motion.observe(&[flat(9), flat(9), flat(9)]), 0.0);
        let moving = motion.observe(&[flat(0), flat(255)]);
        assert!((moving - 0.9).abs() < 1e-9, "{moving}");
        let calm = motion.observe(&[flat(255), flat(255)]);
        assert!(calm < 0.1, "{calm}");
    }

    #[test]
    fn a_growing_cast_is_taken_back() {
        let input = torch_noise(1, &[1, 3, 4, 8, 8]).tanh() * 0.5;
        let mut lock = ColourLock::default();
        let styled = &input * 0.5 + 0.1;
        assert_eq!(lock.apply(&input, &styled, 1.0), styled);
        let cast = &styled + 0.1;
        let corrected = lock.apply(&input, &cast, 1.0);
        let off = (&corrected - &styled).abs().max().double_value(&[]);
        assert!(off < 1e-4, "{off}");
        let half = lock.apply(&input, &cast, 0.5);
        let off = ((half - &styled).mean(Kind::Float).double_value(&[]) - 0.05).abs();
        assert!(off < 1e-4, "{off}");
        // A change of the input's own brightness is no drift.
        let brighter = &input + 0.2;
        let follows = &styled + 0.2;
        let kept = lock.apply(&brighter, &follows, 1.0);
        assert!((kept - follows).abs().max().double_value(&[]) < 1e-4);
        assert_eq!(lock.apply(&input, &cast, 0.0), cast);
    }

    #[test]
    fn an_object_that_leaves_is_no_drift() {
        let frame = |seed| torch_noise(seed, &[1, 4, 1, 16, 16]);
        let mut lock = LatentLock::default();
        for seed in 0..LatentLock::BEGINNING as u64 {
            let with_object = frame(seed);
            // A twentieth of the frame, far from everything else.
            let _ = with_object.narrow(3, 2, 4).narrow(4, 3, 3).fill_(9.0);
            assert_eq!(lock.apply(&with_object, 1.0), with_object);
        }
        let gone = frame(50);
        let off = (lock.apply(&gone, 1.0) - &gone).abs().mean(Kind::Float).double_value(&[]);
        assert!(off < 0.2, "{off}");
    }

    #[test]
    fn latents_that_wander_off_are_brought_back() {
        let frame = |seed| torch_noise(seed, &[1, 4, 1, 8, 8]);
        let mut lock = LatentLock::default();
        let mut beginning = Vec::new();
        for seed in 0..LatentLock::BEGINNING as u64 {
            let latents = frame(seed);
            assert_eq!(lock.apply(&latents, 1.0), latents);
            beginning.push(latents);
        }
        let (mean, deviation) = frame_statistics(&Tensor::cat(&beginning, 2));
        let average = |value: Tensor| value.mean_dim([2i64].as_slice(), true, Kind::Float);
        let (mean, deviation) = (average(mean), average(deviation));
        let wandered = frame(99) * 2.0 + 0.7;
        let (held_mean, held_deviation) = frame_statistics(&lock.apply(&wandered, 1.0));
        let off = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
        assert!(off(&held_mean, &mean) < 1e-5, "{held_mean} {mean}");
        assert!(off(&held_deviation, &deviation) < 1e-5, "{held_deviation} {deviation}");
        // Half as much goes half the way.
        let (half_mean, _) = frame_statistics(&lock.apply(&wandered, 0.5));
        let (wandered_mean, _) = frame_statistics(&wandered);
        assert!(off(&half_mean, &((wandered_mean + mean) * 0.5)) < 1e-5);
        assert_eq!(lock.apply(&wandered, 0.0), wandered);
        // Something else may look different.
        lock.release();
        assert_eq!(lock.apply(&frame(5), 1.0), frame(5));
        // And something else again, before that has arrived.
        lock.release();
        for _ in 0..LatentLock::CHANGE {
            assert_eq!(lock.apply(&frame(7), 1.0), frame(7));
        }
        for _ in 0..LatentLock::BEGINNING {
            assert_eq!(lock.apply(&wandered, 1.0), wandered);
        }
        let (held_mean, _) = frame_statistics(&lock.apply(&frame(3), 1.0));
        let (wandered_mean, _) = frame_statistics(&wandered);
        assert!(off(&held_mean, &wandered_mean) < 1e-5);
    }
}
