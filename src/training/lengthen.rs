// SPDX-License-Identifier: MPL-2.0
//! What an encoder is given in use: videos without end. Taught on clips of a second, it has never seen deep layers whose past holds
//! no edge of a clip, and may make anything of them. Here it learns to make of every second of a long clip what it
//! makes of that second alone, where it has learnt it.

use tch::{Device, Kind, Tensor};

use super::batch::Draws;
use super::vae::{FRAME_RATE, VaeOptions, render};
use super::world::{Scene, Split};
use crate::models::autoencoder_kl_wan::{AutoencoderKLWan, DiagonalGaussian};
use crate::nn::conv3d::FeatureCaches;

/// Latent frames of the clips that are taken for known, and those of them, the last, that have enough of a past.
const KNOWN: i64 = 5;
const SETTLED: i64 = 2;
/// Shapes of such lessons in turn: clips, latent frames, width and height.
const SHAPES: [(u64, i64, (i64, i64)); 6] = [
    (1, 13, (128, 128)),
    (1, 9, (224, 128)),
    (4, 13, (64, 64)),
    (1, 17, (96, 96)),
    (1, 9, (128, 224)),
    (2, 17, (64, 96)),
];
/// Latest frame of a scene that a clip begins with.
const LATEST: f64 = 96.0;
/// How much the logarithm of the posterior's variance counts beside its mean.
const LOGVAR_WEIGHT: f64 = 0.1;

/// A finished encoder, and how it is asked.
pub(super) struct Lengthener {
    known: AutoencoderKLWan,
    favoured: Vec<&'static str>,
    seed: u64,
    device: Device,
}

impl Lengthener {
    /// Lessons by the autoencoder `known`.
    pub fn new(known: AutoencoderKLWan, options: &VaeOptions) -> Self {
        let VaeOptions { favoured, seed, device, .. } = options;
        Self { known, favoured: favoured.clone(), seed: *seed, device: *device }
    }

    /// How far what `vae` makes of the clips of lesson `number` is from what is known of their seconds, in deviations of latents.
    pub fn loss(&self, vae: &AutoencoderKLWan, number: u64) -> Tensor {
        let video = self.clips(number);
        let long = vae.encode(&video, &mut FeatureCaches::default());
        let seconds = self.by_the_second(&video);
        let off = vae.normalize_latents(&long.mean) - vae.normalize_latents(&seconds.mean);
        let off_logvar = long.logvar - seconds.logvar;
        huber(&off) + huber(&off_logvar) * LOGVAR_WEIGHT
    }

    /// Video `[B, 3, F, H, W]` in [-1, 1], a pure function of the number: the world, every second time with less colour, less
    /// contrast and a light that flickers.
    fn clips(&self, number: u64) -> Tensor {
        let mut draws = Draws::new(self.seed, number);
        let (clips, latent_frames, size) = SHAPES[(number % SHAPES.len() as u64) as usize];
        let frames = 4 * (latent_frames - 1) + 1;
        let videos: Vec<Tensor> = (0..clips)
            .map(|_| {
                let scene = Scene::favouring(draws.next(), Split::Train, &self.favoured);
                let first = (draws.unit() * LATEST) as i64;
                let video = render(&scene, size, frames, first);
                if draws.unit() < 0.5 { video } else { faded(&video, &mut draws) }
            })
            .collect();
        Tensor::stack(&videos, 0).to_device(self.device)
    }

    /// Latents `[B, z, T, h, w]` of video `[B, 3, F, H, W]`, F being 4n+1, each out of a clip of its own of [`KNOWN`] latent frames.
    fn by_the_second(&self, video: &Tensor) -> DiagonalGaussian {
        let _no_grad = tch::no_grad_guard();
        let (batch, frames) = (video.size()[0], video.size()[2]);
        let latent_frames = (frames - 1) / 4 + 1;
        // The first clip is believed from its first frame on, the others only where they have a past.
        let starts: Vec<i64> = (0..=latent_frames - KNOWN).step_by(SETTLED as usize).collect();
        let clips: Vec<Tensor> =
            starts.iter().map(|start| video.narrow(2, 4 * start, 4 * (KNOWN - 1) + 1)).collect();
        let known = self.known.encode(&Tensor::cat(&clips, 0), &mut FeatureCaches::default());
        let joined = |latents: &Tensor| {
            let parts: Vec<Tensor> = (0..)
                .zip(&starts)
                .map(|(at, start)| {
                    let clip = latents.narrow(0, at * batch, batch);
                    if *start == 0 { clip } else { clip.narrow(2, KNOWN - SETTLED, SETTLED) }
                })
                .collect();
            Tensor::cat(&parts, 2)
        };
        DiagonalGaussian { mean: joined(&known.mean), logvar: joined(&known.logvar) }
    }
}

/// Mean of squares where small and of distances where large: what is far off is not to drown all else.
fn huber(off: &Tensor) -> Tensor {
    off.huber_loss(&off.zeros_like(), tch::Reduction::Mean, 1.0)
}

/// Video `[3, F, H, W]` in [-1, 1] with some of its colour and contrast, lighter or darker, and flickering.
fn faded(video: &Tensor, draws: &mut Draws) -> Tensor {
    let grey = video.mean_dim(&[0i64][..], true, Kind::Float);
    let faded = &grey + (video - &grey) * draws.unit();
    let (contrast, light) = (0.4 + 0.6 * draws.unit(), 0.6 * draws.unit() - 0.3);
    let (depth, pace, phase) = (0.1 * draws.unit(), 0.5 + 4.0 * draws.unit(), draws.unit());
    let seconds = Tensor::arange(video.size()[1], (Kind::Float, video.device())) / FRAME_RATE;
    let turn = (seconds * pace + phase) * std::f64::consts::TAU;
    let flicker = (turn.sin() * depth + 1.0).view([1, -1, 1, 1]);
    let lit = (faded * contrast + light + 1.0) * flicker - 1.0;
    lit.clamp(-1.0, 1.0)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::eval::pixels;
    use super::super::vae;
    use super::*;

    fn lengthener() -> Lengthener {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/default/vae");
        let known = vae::load(&folder, Device::Cpu).unwrap();
        Lengthener { known, favoured: Vec::new(), seed: 3, device: Device::Cpu }
    }

    #[test]
    fn every_latent_comes_out_of_a_second_that_ends_with_it() {
        let lengthener = lengthener();
        let video = lengthener.clips(0).narrow(3, 0, 32).narrow(4, 0, 32);
        let seconds = lengthener.by_the_second(&video).mean;
        assert_eq!(seconds.size()[2], 13);
        let alone = |start: i64| {
            let clip = video.narrow(2, start, 17);
            lengthener.known.encode(&clip, &mut FeatureCaches::default()).mean
        };
        let same = |at: i64, clip: &Tensor, within: i64| {
            let off = seconds.narrow(2, at, 1) - clip.narrow(2, within, 1);
            assert!(off.abs().max().double_value(&[]) < 1e-4, "{at}");
        };
        let first = alone(0);
        for at in 0..5 {
            same(at, &first, at);
        }
        for (at, start, within) in [(5, 8, 3), (6, 8, 4), (11, 32, 3), (12, 32, 4)] {
            same(at, &alone(start), within);
        }
    }

    /// Films over flat ground of which the encoder, taught on a second alone, made latents twenty times too large.
    #[test]
    fn the_default_model_keeps_long_films() {
        let _no_grad = tch::no_grad_guard();
        let vae = lengthener().known;
        for index in [525, 649, 749] {
            let scene = Scene::from_index(index, Split::Train);
            let video = render(&scene, (224, 128), 97, 0).unsqueeze(0);
            let latents = vae.encode(&video, &mut FeatureCaches::default()).mean;
            let largest = vae.normalize_latents(&latents).abs().max().double_value(&[]);
            assert!(largest < 15.0, "{index}: {largest}");
            let decoded = vae.decode(&latents, &mut FeatureCaches::default());
            let last = |video: &Tensor| video.narrow(2, 81, 16);
            let psnr = pixels::psnr(pixels::squared_error(&last(&decoded), &last(&video)));
            assert!(psnr > 28.0, "{index}: {psnr} dB");
        }
    }

    #[test]
    fn lessons_are_functions_of_their_number() {
        let lengthener = lengthener();
        for number in 0..SHAPES.len() as u64 {
            let clips = lengthener.clips(number);
            assert!(clips.equal(&lengthener.clips(number)));
            assert!(clips.abs().max().double_value(&[]) <= 1.0);
        }
        assert!(!lengthener.clips(0).equal(&lengthener.clips(6)));
    }
}
