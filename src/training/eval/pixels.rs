// SPDX-License-Identifier: MPL-2.0
//! Figures of videos that need no words: fidelity of a reconstruction, flicker, and steps from frame to frame.

use tch::{Device, Kind, Tensor};

use crate::pipeline::RgbFrame;

/// Mean squared error of two videos in [-1, 1], as a share of the squared range.
pub(in crate::training) fn squared_error(a: &Tensor, b: &Tensor) -> f64 {
    // Peak to peak is 2.
    (a - b).square().mean(Kind::Float).double_value(&[]) / 4.0
}

/// Peak signal-to-noise ratio in dB of an error from [`squared_error`].
pub(in crate::training) fn psnr(squared_error: f64) -> f64 {
    -10.0 * squared_error.max(1e-12).log10()
}

/// Mean structural similarity of the light of two videos `[3, F, H, W]` in [-1, 1], each side at least 11.
///
/// Wang, Bovik, Sheikh and Simoncelli, "Image Quality Assessment" (IEEE TIP 13, 2004): Gaussian windows of 11 x 11,
/// sigma 1.5, K1 0.01, K2 0.03, windows inside the frame only.
pub(super) fn ssim(a: &Tensor, b: &Tensor) -> f64 {
    let light = |video: &Tensor| {
        let rgb = video.to_kind(Kind::Float) * 0.5 + 0.5;
        let light = rgb.get(0) * 0.299 + rgb.get(1) * 0.587 + rgb.get(2) * 0.114;
        light.unsqueeze(1) // [F, 1, H, W]
    };
    let (a, b) = (light(a), light(b));
    let window = window(a.device());
    let mean = |x: &Tensor| {
        let columns = x.conv2d(&window, None::<Tensor>, 1, 0, 1, 1);
        columns.conv2d(&window.transpose(2, 3), None::<Tensor>, 1, 0, 1, 1)
    };
    let (mean_a, mean_b) = (mean(&a), mean(&b));
    let (square_a, square_b, both) = (mean_a.square(), mean_b.square(), &mean_a * &mean_b);
    let (var_a, var_b) = (mean(&a.square()) - &square_a, mean(&b.square()) - &square_b);
    let covariance = mean(&(a * b)) - &both;
    let (c1, c2) = (0.01f64.powi(2), 0.03f64.powi(2));
    let above = (both * 2.0 + c1) * (covariance * 2.0 + c2);
    let below = (square_a + square_b + c1) * (var_a + var_b + c2);
    (above / below).mean(Kind::Float).double_value(&[])
}

/// A Gaussian `[1, 1, 11, 1]`.
fn window(device: Device) -> Tensor {
    let weights: Vec<f32> =
        (-5..=5).map(|x| (-((x * x) as f32) / (2.0 * 1.5 * 1.5)).exp()).collect();
    let total: f32 = weights.iter().sum();
    (Tensor::from_slice(&weights) / f64::from(total)).view([1, 1, 11, 1]).to_device(device)
}

/// Mean absolute difference of two frames of one size, in levels of 255.
pub(super) fn difference(a: &RgbFrame, b: &RgbFrame) -> f64 {
    let total: u64 = a.data.iter().zip(&b.data).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    total as f64 / a.data.len().max(1) as f64
}

/// How far frames are from the mean of their two neighbours, in levels of 255: what moves evenly counts little.
pub(super) fn flicker(frames: &[RgbFrame]) -> f64 {
    let each = frames.windows(3).map(|near| {
        let triples = near[0].data.iter().zip(&near[1].data).zip(&near[2].data);
        let twice: u64 = triples
            .map(|((a, b), c)| (i64::from(*a) + i64::from(*c) - 2 * i64::from(*b)).unsigned_abs())
            .sum();
        twice as f64 / 2.0 / near[1].data.len().max(1) as f64
    });
    each.sum::<f64>() / frames.len().saturating_sub(2).max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::torch_noise;

    fn noise(seed: u64) -> Tensor {
        torch_noise(seed, &[3, 2, 24, 24]).tanh()
    }

    #[test]
    fn a_video_is_like_itself_and_unlike_noise() {
        let (a, b) = (noise(1), noise(2));
        assert!((ssim(&a, &a) - 1.0).abs() < 1e-4);
        assert!(ssim(&a, &b) < 0.1);
        // Half a step of a range of two everywhere: 20 log10(4) dB.
        let shifted = &a + 0.5;
        assert!((psnr(squared_error(&a, &shifted)) - 12.04).abs() < 0.01);
    }

    #[test]
    fn even_motion_is_no_flicker() {
        let frame = |level: u8| RgbFrame { width: 4, height: 4, data: vec![level; 48] };
        assert_eq!(flicker(&[frame(10), frame(20), frame(30)]), 0.0);
        assert_eq!(flicker(&[frame(10), frame(30), frame(10)]), 20.0);
        assert_eq!(difference(&frame(10), &frame(30)), 20.0);
    }
}
