// SPDX-License-Identifier: MPL-2.0
//! What the autoencoder loses of known pictures, given back to those that the model makes beside them.
//!
//! A picture that has been through the autoencoder is softer than its original and a little off in brightness, so that
//! a jump shows wherever the one follows the other. Between two known pictures ([`joined`]) what is lost of both is
//! known: the difference to what is decoded of them. Between two streams ([`detailed`]) their fine detail is.

use tch::{Kind, Tensor};

/// Change of a place, in [-1, 1], that makes it another.
const CHANGED: f64 = 0.25;
/// Made pictures beside a known one that get its fine detail.
const FINE_FRAMES: i64 = 8;

/// A known picture at one end of a row of made ones.
pub(super) struct End {
    /// What the decoder makes of it, `[1, 3, 1, H, W]` in [-1, 1].
    decoded: Tensor,
    /// What that lacks: slow changes over the picture, and the rest.
    coarse: Tensor,
    fine: Tensor,
}

impl End {
    /// Of a picture and what is decoded of it, both `[1, 3, 1, H, W]` in [-1, 1].
    pub fn new(picture: &Tensor, decoded: &Tensor) -> Self {
        let lost = picture - decoded;
        let coarse = smoothed(&lost, slow_side(&lost));
        Self { decoded: decoded.shallow_clone(), fine: lost - &coarse, coarse }
    }

    /// What a made picture lacks too, by shares in [0, 1]. Fine detail stays only where the picture is still that of
    /// the end: elsewhere it would be a ghost of it.
    fn lacking(&self, made: &Tensor, coarse: f64, fine: f64) -> Tensor {
        let changed = (made - &self.decoded).abs().mean_dim([1i64].as_slice(), true, Kind::Float);
        let same = (smoothed(&changed, 3) / CHANGED).square().neg().exp();
        &self.coarse * coarse + &self.fine * same * fine
    }
}

/// Made pictures `[1, 3, F, H, W]` between known ones, which follow them without a jump: brightness is corrected all the
/// way, fine detail fades out of the first pictures and into the last.
pub(super) fn joined(made: &Tensor, before: Option<&End>, after: Option<&End>) -> Tensor {
    let frames = made.size()[2];
    let reach = FINE_FRAMES.min(frames) + 1;
    let mended: Vec<Tensor> = (0..frames)
        .map(|frame| {
            let mut picture = made.narrow(2, frame, 1);
            for (end, distance) in [(before, frame + 1), (after, frames - frame)] {
                let Some(end) = end else { continue };
                let coarse = 1.0 - distance as f64 / (frames + 1) as f64;
                let fine = eased(1.0 - distance as f64 / reach as f64);
                picture = &picture + end.lacking(&picture, coarse, fine);
            }
            picture
        })
        .collect();
    Tensor::cat(&mended, 2)
}

/// Share of the way from a stream on which its fine detail fades, and that on which all the rest of it does.
const FINE_REACH: f64 = 0.45;
const COARSE_REACH: f64 = 0.12;
/// From this share on detail goes only where the picture still looks like the stream; nearer to it everywhere.
const CHOOSY: f64 = 0.2;
/// Difference in [-1, 1] at which a place does not look like the stream.
const UNLIKE: f64 = 0.4;

/// A video `[1, 3, F, H, W]` in [-1, 1] between two others, `shares` of the way from `a` to `b` frame by frame, with the
/// detail of the one that it is nearer to. At either end it is that one; half-way it is as it was, so that nothing shows
/// twice.
pub(super) fn detailed(video: &Tensor, a: &Tensor, b: &Tensor, shares: &[f64]) -> Tensor {
    let side = detail_side(video);
    let coarse = smoothed(video, side);
    let fine = video - &coarse;
    let from_b: Vec<f64> = shares.iter().map(|share| 1.0 - share).collect();
    let mut out = video.shallow_clone();
    for (stream, distances) in [(a, shares), (b, from_b.as_slice())] {
        if distances.iter().all(|&distance| distance >= FINE_REACH) {
            continue;
        }
        let column = |of: &dyn Fn(f64) -> f64| {
            let values: Vec<f32> =
                distances.iter().map(|it| of(it.clamp(0.0, 1.0)) as f32).collect();
            Tensor::from_slice(&values).view([1, 1, -1, 1, 1]).to_device(video.device())
        };
        let stream = stream.to_device(video.device()).to_kind(Kind::Float);
        let own_coarse = smoothed(&stream, side);
        let own_fine = stream - &own_coarse;
        let unlike = (&own_coarse - &coarse).abs().mean_dim([1i64].as_slice(), true, Kind::Float);
        let choosy = column(&|distance| (distance / CHOOSY).min(1.0));
        let alike = ((unlike / UNLIKE).square() * choosy).neg().exp();
        let of_fine = alike * column(&|distance| eased(1.0 - distance / FINE_REACH));
        let of_coarse = column(&|distance| eased(1.0 - distance / COARSE_REACH));
        out = out + of_fine * (own_fine - &fine) + of_coarse * (own_coarse - &coarse);
    }
    out
}

/// 0 up to 0, 1 from 1 on, level at both.
pub(super) fn eased(x: f64) -> f64 {
    let x = x.clamp(0.0, 1.0);
    x * x * (3.0 - 2.0 * x)
}

/// Pixels of a box that leaves only slow changes over the picture.
fn slow_side(video: &Tensor) -> i64 {
    let s = video.size();
    (s[3].min(s[4]) / 8).max(3) | 1
}

/// Pixels of a box about as wide as what the autoencoder loses in a picture of this size.
fn detail_side(video: &Tensor) -> i64 {
    let s = video.size();
    (s[3].min(s[4]) / 10).max(3) | 1
}

/// The mean of the box of `side` pixels (odd) around each, twice; video `[1, C, F, H, W]`.
fn smoothed(video: &Tensor, side: i64) -> Tensor {
    let s = video.size();
    let half = side / 2;
    let mut planes = video.reshape([s[0] * s[1], s[2], s[3], s[4]]);
    for _ in 0..2 {
        for (kernel, padding) in [([side, 1], [half, 0]), ([1, side], [0, half])] {
            planes = planes.avg_pool2d(kernel, [1, 1], padding, false, false, None);
        }
    }
    planes.reshape(s)
}

#[cfg(test)]
mod tests {
    use super::super::torch_noise;
    use super::*;
    use tch::Device;

    const OPTIONS: (Kind, Device) = (Kind::Float, Device::Cpu);

    fn noise(seed: u64, frames: i64) -> Tensor {
        torch_noise(seed, &[1, 3, frames, 16, 24]).tanh() * 0.8
    }

    fn apart(one: &Tensor, other: &Tensor) -> f64 {
        (one - other).abs().mean(Kind::Float).double_value(&[])
    }

    #[test]
    fn a_picture_beside_a_known_one_follows_it_without_a_jump() {
        let (first, last) = (noise(1, 1), noise(2, 1));
        // An autoencoder that blurs and darkens.
        let lossy = |picture: &Tensor| smoothed(picture, 5) - 0.1;
        let (seen, known) = (lossy(&first), lossy(&last));
        let ends = [End::new(&first, &seen), End::new(&last, &known)];
        // Two pictures that stand still, then two that do.
        let made = Tensor::cat(&[&seen, &seen, &known, &known], 2);
        let mended = joined(&made, Some(&ends[0]), Some(&ends[1]));
        for (picture, frame) in [(&first, 0), (&last, 3)] {
            let before = apart(&made.narrow(2, frame, 1), picture);
            let after = apart(&mended.narrow(2, frame, 1), picture);
            assert!(after < 0.4 * before, "frame {frame}: {before} to {after}");
        }
        let none = joined(&made, None, None);
        assert_eq!(none, made);
    }

    #[test]
    fn all_that_is_lacking_gives_the_known_picture_itself() {
        let picture = noise(3, 1);
        let decoded = smoothed(&picture, 3) * 0.9;
        let mended = &decoded + End::new(&picture, &decoded).lacking(&decoded, 1.0, 1.0);
        assert!((mended - picture).abs().max().double_value(&[]) < 1e-5);
    }

    #[test]
    fn where_the_picture_is_another_no_detail_is_left_of_the_known_one() {
        let (picture, other) = (noise(4, 1), Tensor::ones([1, 3, 1, 16, 24], OPTIONS));
        let end = End::new(&picture, &-Tensor::ones([1, 3, 1, 16, 24], OPTIONS));
        assert!(end.lacking(&other, 0.0, 1.0).abs().max().double_value(&[]) < 1e-6);
    }

    #[test]
    fn a_mix_is_its_streams_at_the_ends_nears_them_and_stays_itself_half_way() {
        let (a, b, made) = (noise(5, 5), noise(6, 5), noise(7, 5) * 0.1);
        let mixed = detailed(&made, &a, &b, &[0.0, 0.04, 0.5, 0.96, 1.0]);
        let frame = |video: &Tensor, index| video.narrow(2, index, 1);
        let close = |index, other: &Tensor| apart(&frame(&mixed, index), &frame(other, index));
        assert!(close(0, &a) < 1e-5 && close(4, &b) < 1e-5);
        assert_eq!(frame(&mixed, 2), frame(&made, 2));
        for (index, stream) in [(1, &a), (3, &b)] {
            let before = apart(&frame(&made, index), &frame(stream, index));
            assert!(close(index, stream) < 0.6 * before, "frame {index}");
        }
    }
}
