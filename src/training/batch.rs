// SPDX-License-Identifier: MPL-2.0
//! What one training step of the transformer is made with: clips, captions, noise levels and the attention pattern, all drawn
//! from seed and step.

use anyhow::Result;
use tch::{Device, Kind, Tensor};

use super::attribute_head::Truth;
use super::teacher::Held;
use crate::models::tokenizer::PromptTokenizer;
use crate::models::transformer_wan::AttentionPattern;

/// Latent frames of one block under block-causal attention.
pub const BLOCK_LATENT_FRAMES: i64 = 1;
/// Share of the windows at the start of a clip of which nothing is known.
const FREE: f64 = 0.2;
/// Share of the steps on clips that teach the next frame.
pub(super) const NEXT: f64 = 0.75;
/// Share of the noise levels that are not shifted: outlines are drawn, and colours kept, at low ones.
const UNSHIFTED: f64 = 0.65;
/// Shift of the others: it is at high levels that an object's colour and place are decided, as a latent has many channels to
/// show through the noise.
const SHIFT: f64 = 4.0;

/// A stream of random numbers that is a pure function of seed and step.
pub(super) struct Draws {
    state: u64,
    /// How far noise levels are shifted towards noise; 1 for not at all.
    shift: f64,
    /// Share of the noise levels that are not.
    unshifted: f64,
}

impl Draws {
    pub(super) fn new(seed: u64, step: u64) -> Self {
        let seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self {
            state: seed ^ step.wrapping_mul(0xd134_2543_de82_ef95),
            shift: SHIFT,
            unshifted: UNSHIFTED,
        }
    }

    /// All noise levels shifted by as much.
    pub(super) fn with_shift(self, shift: f64) -> Self {
        Self { shift, unshifted: 0.0, ..self }
    }

    /// SplitMix64 (Steele, Lea, Flood 2014).
    pub(super) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A noise level: logit-normal (Esser et al., arXiv 2403.03206), some of them shifted towards noise.
    pub(super) fn level(&mut self) -> f32 {
        let shift = if self.unit() < self.unshifted { 1.0 } else { self.shift };
        let radius = (-2.0 * self.unit().max(1e-12).ln()).sqrt();
        let normal = radius * (std::f64::consts::TAU * self.unit()).cos();
        let s = 1.0 / (1.0 + (-1.1 * normal).exp());
        (shift * s / (1.0 + (shift - 1.0) * s)) as f32
    }

    /// A noise level at which hardly anything shows.
    fn high_level(&mut self) -> f32 {
        (1.0 - 0.1 * self.unit()) as f32
    }

    /// Levels of the latent frames of one window; level 0 means known. A window that continues a clip always has
    /// a known head, or levels of its own for each frame: nothing else is asked of it in use.
    pub(super) fn levels(&mut self, frames: usize, continues: bool) -> Vec<f32> {
        let common = self.level();
        let choice = self.unit();
        let free = if continues { 0.0 } else { FREE };
        match (choice - free) / (1.0 - free) {
            _ if frames == 1 => vec![common],
            u if u < 0.0 => vec![common; frames],
            u if u < 0.15 => (0..frames).map(|_| self.level()).collect(),
            // A known head, as every window of an endless video has it: the picture that it opens with, or the tail of the
            // window before. Now and then a known tail as well.
            u => {
                let often = if continues { 2 } else { 1 };
                let known = if self.unit() < 0.8 { often } else { 3 - often }.min(frames - 1);
                let tail = usize::from(u > 0.9 && frames > known + 1);
                // Where a frame shows through its noise it is denoised as a still is; only above that it has to be made out
                // from the frames that are known.
                let common = if self.unit() < 0.6 { self.high_level() } else { common };
                (0..frames)
                    .map(|t| if t < known || t >= frames - tail { 0.0 } else { common })
                    .collect()
            }
        }
    }
}

/// Clips of one shape with their captions.
pub(super) struct Batch {
    /// Normalised and clean, `[B, z, T, h, w]`.
    pub latents: Tensor,
    /// What is noised, `[B, z, T, h, w]`: the same, or, where the caption says how it should be, something else.
    pub shown: Tensor,
    /// The numbers `[n]` of the clips that guidance is learnt of: those that show the truth under a caption that says something.
    pub guided: Tensor,
    /// Where a teacher stands by.
    pub held: Option<Held>,
    /// How much each latent counts in the loss, `[B, 1, T, h, w]`.
    pub weights: Tensor,
    /// `[B, T]` in [0, 1]; 0 where a frame is known.
    pub levels: Tensor,
    pub captions: Captions,
    /// What is known of clips of the world.
    pub truth: Option<Truth>,
    pub pattern: AttentionPattern,
}

impl Batch {
    /// Clean latent frames that stand in front, where each block is taught what follows it.
    pub fn before(&self) -> i64 {
        match self.pattern {
            AttentionPattern::NextBlock { block_latent_frames } => {
                self.latents.size()[2] - block_latent_frames
            }
            _ => 0,
        }
    }

    /// The numbers of the clips that guidance is learnt of. Where something else is shown, what no caption makes of it is no
    /// measure.
    pub fn guided(captions: &Captions, shown_otherwise: &[bool]) -> Tensor {
        let said = captions.empty.iter().zip(shown_otherwise);
        let numbers = (0i64..).zip(said).filter(|(_, (empty, otherwise))| !**empty && !**otherwise);
        Tensor::from_slice(&numbers.map(|(number, _)| number).collect::<Vec<_>>())
    }

    /// The same on a device.
    pub fn to_device(&self, device: Device) -> Self {
        let moved = |t: &Tensor| moved(t, device);
        let truth = self.truth.as_ref().map(|truth| Truth {
            attributes: moved(&truth.attributes),
            places: moved(&truth.places),
            outlines: moved(&truth.outlines),
        });
        Self {
            latents: moved(&self.latents),
            shown: moved(&self.shown),
            guided: moved(&self.guided),
            held: self.held.as_ref().map(|held| held.to_device(device)),
            weights: moved(&self.weights),
            levels: moved(&self.levels),
            captions: self.captions.to_device(device),
            truth,
            pattern: self.pattern,
        }
    }
}

/// A copy on a device. For a GPU it goes by way of pinned memory: neither this thread nor the work that the GPU has waits for it.
pub(super) fn moved(t: &Tensor, device: Device) -> Tensor {
    match device {
        Device::Cpu => t.shallow_clone(),
        _ => t.pin_memory(device).to_device_(device, t.kind(), true, false),
    }
}

/// Captions as tokens.
#[derive(Debug)]
pub(super) struct Captions {
    /// `[B, L]`, of the length of the longest.
    pub ids: Tensor,
    /// `[B, L]`: 1 for tokens, 0 after the last one.
    pub mask: Tensor,
    /// Which of them say nothing.
    pub empty: Vec<bool>,
}

impl Captions {
    /// At most `longest` tokens of each.
    ///
    /// # Errors
    /// Those of the tokenizer.
    pub fn new(tokenizer: &PromptTokenizer, captions: &[String], longest: i64) -> Result<Self> {
        let tokens: Vec<_> = captions
            .iter()
            .map(|caption| tokenizer.encode(caption, longest as usize))
            .collect::<Result<_, _>>()?;
        let length = tokens.iter().map(|t| t.len()).max().unwrap_or(1);
        let (mut ids, mut mask) = (Vec::new(), Vec::new());
        for tokens in &tokens {
            let (row, row_mask) = tokens.padded(length);
            ids.extend(row);
            mask.extend(row_mask);
        }
        let shape = [captions.len() as i64, length as i64];
        Ok(Self {
            ids: Tensor::from_slice(&ids).view(shape),
            mask: Tensor::from_slice(&mask).view(shape).to_kind(Kind::Float),
            empty: captions.iter().map(String::is_empty).collect(),
        })
    }

    /// The same on a device.
    pub fn to_device(&self, device: Device) -> Self {
        let (ids, mask) = (moved(&self.ids, device), moved(&self.mask, device));
        Self { ids, mask, empty: self.empty.clone() }
    }
}

/// What the windows of one batch are trained for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    /// Pictures that stand for themselves.
    Stills,
    /// Each block of latent frames after those before it, known, as a causal rollout asks for it.
    Next { block: i64 },
    /// Windows of any pattern of levels: what bridges, loops, restyling and windowed rollouts ask for.
    Window,
}

impl Task {
    /// Latent frames of its windows, of `most` at most.
    pub(super) fn frames(self, draws: &mut Draws, most: i64) -> i64 {
        match self {
            Self::Stills => 1,
            // Short ones more often: they are cheap, and the next frame hangs on the last one most.
            Self::Next { block } => {
                let most = most / block * block;
                if draws.unit() < 0.6 { (3 * block).min(most) } else { most }
            }
            Self::Window => most,
        }
    }

    /// Latent frames that the transformer is given for windows of so many.
    pub(super) fn frames_in(self, frames: i64) -> i64 {
        match self {
            Self::Next { block } => 2 * frames - block,
            Self::Stills | Self::Window => frames,
        }
    }

    /// Noise levels of the frames of one window.
    pub(super) fn levels(self, draws: &mut Draws, frames: usize, continues: bool) -> Vec<f32> {
        // How often nothing shows through the noise: it is there that a picture is laid out.
        let (block, high) = match self {
            Self::Stills => (1, 0.2),
            Self::Next { block } => (block as usize, 0.3),
            Self::Window => return draws.levels(frames, continues),
        };
        let blocks = frames.div_ceil(block);
        let mut one = || if draws.unit() < high { draws.high_level() } else { draws.level() };
        let mut levels: Vec<f32> = (0..blocks).map(|_| one()).collect();
        // Nobody begins in the middle of something; but what is all there is has to be learnt.
        if continues && blocks > 1 {
            levels[0] = 0.0;
        }
        (0..frames).map(|frame| levels[frame / block]).collect()
    }

    pub(super) fn pattern(self, draws: &mut Draws) -> AttentionPattern {
        let block = BLOCK_LATENT_FRAMES;
        match self {
            Self::Next { block } => AttentionPattern::NextBlock { block_latent_frames: block },
            Self::Window if draws.unit() < 0.25 => {
                AttentionPattern::BlockCausal { first_block: block, block_latent_frames: block }
            }
            _ => AttentionPattern::Full,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_next_block_has_one_level() {
        let mut draws = Draws::new(1, 1);
        let mut lengths = [0; 7];
        for block in [1, 3] {
            let task = Task::Next { block };
            for continues in [true, false].repeat(50) {
                let frames = task.frames(&mut draws, 6);
                lengths[frames as usize] += 1;
                let levels = task.levels(&mut draws, frames as usize, continues);
                assert_eq!(levels.len() as i64, frames);
                for (number, levels) in levels.chunks(block as usize).enumerate() {
                    assert!(levels.iter().all(|level| *level == levels[0]));
                    assert_eq!(levels[0] == 0.0, number == 0 && continues);
                }
            }
            let next = AttentionPattern::NextBlock { block_latent_frames: block };
            assert_eq!(task.pattern(&mut draws), next);
        }
        assert_eq!(Task::Next { block: 1 }.frames_in(5), 9);
        // A single block has nothing known before it: without a noisy frame there would be no loss.
        let levels = Task::Next { block: 3 }.levels(&mut draws, 3, true);
        assert!(levels.iter().all(|level| *level > 0.0));
        assert!(lengths[3] > 30 && lengths[6] > 100, "{lengths:?}");
    }

    #[test]
    fn a_window_that_continues_is_never_free_at_one_level() {
        let mut draws = Draws::new(1, 1);
        let mut known = 0;
        for _ in 0..300 {
            let levels = draws.levels(5, true);
            assert!(levels[0] == 0.0 || levels.iter().any(|level| *level != levels[0]));
            assert!(levels.iter().any(|level| *level > 0.0));
            known += usize::from(levels[0] == 0.0);
        }
        assert!((230..280).contains(&known), "{known}");
        assert_eq!(draws.levels(1, false).len(), 1);
    }
}
