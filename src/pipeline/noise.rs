// SPDX-License-Identifier: MPL-2.0
//! Starting noise, drawn in Rust and never from a global generator.
//!
//! [`NoiseKind::Counter`]: each latent frame of an endless stream has its own noise, a function of (seed, absolute
//! latent frame, step) by Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), the same
//! on every device and however the stream is cut into windows. [`NoiseKind::Torch`]: one draw for a whole window, equal
//! to `torch.randn` on the CPU after `manual_seed`, for comparison with diffusers.

use tch::{Kind, Tensor};

/// Where starting noise comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NoiseKind {
    #[default]
    Counter,
    Torch,
}

/// Standard normal noise `[1, C, T, h, w]` in f32 on the CPU for latent frames `first_frame..first_frame + T`; `step` tells
/// apart what is drawn for the same frame at different steps.
pub fn counter_noise(seed: u64, first_frame: u64, step: u32, shape: [i64; 4]) -> Tensor {
    let [channels, frames, height, width] = shape;
    let size = (channels * height * width) as usize;
    let mut values = Vec::with_capacity(size * frames as usize);
    for frame in 0..frames as u64 {
        let frame = first_frame.wrapping_add(frame);
        let counter = |block: u32| [block, step, frame as u32, (frame >> 32) as u32];
        let blocks =
            (0..size.div_ceil(4) as u32).flat_map(|block| normals(philox(counter(block), seed)));
        values.extend(blocks.take(size));
    }
    let by_frame = Tensor::from_slice(&values).view([1, frames, channels, height, width]);
    by_frame.permute([0, 2, 1, 3, 4]).contiguous()
}

/// Four 32-bit words from a counter and a key: ten rounds.
fn philox(mut counter: [u32; 4], key: u64) -> [u32; 4] {
    let (mut k0, mut k1) = (key as u32, (key >> 32) as u32);
    for _ in 0..10 {
        let a = u64::from(counter[0]) * 0xD251_1F53;
        let b = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ k0,
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ k1,
            a as u32,
        ];
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    counter
}

/// Four normal numbers from four words (Box-Muller, in f64).
fn normals(words: [u32; 4]) -> [f32; 4] {
    // In (0, 1): never 0, whose logarithm is infinite.
    let unit = |word: u32| (f64::from(word) + 0.5) / 4_294_967_296.0;
    let pair = |a: u32, b: u32| {
        let radius = (-2.0 * unit(a).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * unit(b)).sin_cos();
        [(radius * cos) as f32, (radius * sin) as f32]
    };
    let ([a, b], [c, d]) = (pair(words[0], words[1]), pair(words[2], words[3]));
    [a, b, c, d]
}

/// Noise of any shape in f32 on the CPU, as `torch.randn` draws it after `manual_seed(seed)`, to within the rounding of its
/// vectorised logarithm and cosine.
pub fn torch_noise(seed: u64, shape: &[i64]) -> Tensor {
    let size = shape.iter().product::<i64>() as usize;
    let mut rng = Mt19937::new(seed as u32);
    if size < 16 {
        // torch draws short tensors one pair at a time, in f64.
        let mut values = Vec::with_capacity(size + 1);
        while values.len() < size {
            let (a, b) = (rng.next_unit_f64(), rng.next_unit_f64());
            let radius = (-2.0 * (1.0 - b).ln()).sqrt();
            let (sin, cos) = (std::f64::consts::TAU * a).sin_cos();
            values.extend([(radius * cos) as f32, (radius * sin) as f32]);
        }
        return Tensor::from_slice(&values[..size]).view(shape);
    }
    let mut values: Vec<f32> = (0..size).map(|_| rng.next_unit_f32()).collect();
    for block in values.chunks_exact_mut(16) {
        to_normal(block);
    }
    if !size.is_multiple_of(16) {
        // The last sixteen are drawn anew.
        let tail = &mut values[size - 16..];
        tail.fill_with(|| rng.next_unit_f32());
        to_normal(tail);
    }
    Tensor::from_slice(&values).to_kind(Kind::Float).view(shape)
}

/// Sixteen uniform numbers to normal ones: the first eight give radii, the others angles.
fn to_normal(block: &mut [f32]) {
    for j in 0..8 {
        let radius = (-2.0 * f64::from(1.0 - block[j]).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * f64::from(block[j + 8])).sin_cos();
        (block[j], block[j + 8]) = ((radius * cos) as f32, (radius * sin) as f32);
    }
}

/// The Mersenne Twister of Matsumoto and Nishimura (1998), torch's CPU generator.
struct Mt19937 {
    state: [u32; 624],
    index: usize,
}

impl Mt19937 {
    fn new(seed: u32) -> Self {
        let mut state = [seed; 624];
        for i in 1..624 {
            let previous = state[i - 1];
            state[i] =
                1_812_433_253u32.wrapping_mul(previous ^ (previous >> 30)).wrapping_add(i as u32);
        }
        Self { state, index: 624 }
    }

    fn next_u32(&mut self) -> u32 {
        if self.index == 624 {
            for i in 0..624 {
                let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % 624] & 0x7FFF_FFFF);
                let odd = if y & 1 == 1 { 0x9908_B0DF } else { 0 };
                self.state[i] = self.state[(i + 397) % 624] ^ (y >> 1) ^ odd;
            }
            self.index = 0;
        }
        let mut y = self.state[self.index];
        self.index += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9D2C_5680;
        y ^= (y << 15) & 0xEFC6_0000;
        y ^ (y >> 18)
    }

    /// In [0, 1), 24 bits.
    fn next_unit_f32(&mut self) -> f32 {
        (self.next_u32() & 0x00FF_FFFF) as f32 / 16_777_216.0
    }

    /// In [0, 1), 53 bits.
    fn next_unit_f64(&mut self) -> f64 {
        let (high, low) = (u64::from(self.next_u32()), u64::from(self.next_u32()));
        (((high << 32) | low) & ((1 << 53) - 1)) as f64 / 9_007_199_254_740_992.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_matches_published_values() {
        assert_eq!(philox([0; 4], 0), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], u64::MAX),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
    }

    #[test]
    fn frames_have_the_same_noise_in_any_window() {
        let whole = counter_noise(7, 10, 0, [3, 5, 4, 4]);
        let part = counter_noise(7, 12, 0, [3, 2, 4, 4]);
        assert_eq!(whole.narrow(2, 2, 2), part);
        assert_ne!(part, counter_noise(8, 12, 0, [3, 2, 4, 4]));
        assert_ne!(part, counter_noise(7, 12, 1, [3, 2, 4, 4]));
    }

    #[test]
    fn counter_noise_is_standard_normal() {
        let noise = counter_noise(1, 0, 0, [16, 8, 16, 16]);
        assert!(noise.mean(Kind::Float).double_value(&[]).abs() < 0.02);
        assert!((noise.std(true).double_value(&[]) - 1.0).abs() < 0.02);
        assert!(noise.abs().max().double_value(&[]) < 6.5);
    }
}
