// SPDX-License-Identifier: MPL-2.0
//! What encoder and decoder are made of. All activations are channels-last `[B, C, T, H, W]`.

use tch::{Kind, Tensor};

use crate::error::Result;
use crate::nn::conv3d::{
    CausalConv3d, FeatureCache, FeatureCaches, FrameConv2d, SlotCounter, fold_frames, last_frames,
    unfold_frames,
};
use crate::weights::{Init, Weights};

/// Normalisation over channels: `x / max(||x||, 1e-12) * sqrt(C) * gamma`, no mean, no epsilon.
#[derive(Debug)]
pub(super) struct WanRmsNorm {
    gamma: Tensor,
    channels: i64,
}

impl WanRmsNorm {
    /// `gamma` has `trailing` dimensions of size 1 after the channels (3 for video, 2 for frames).
    pub fn new(w: &Weights, channels: i64, trailing: usize) -> Result<Self> {
        let mut shape = vec![channels];
        shape.resize(1 + trailing, 1);
        // As it is: a view made here would not follow a parameter whose data the optimiser moves.
        let gamma = w.get("gamma", &shape, Init::Ones)?;
        Ok(Self { gamma, channels })
    }

    /// Any layout with channels in dimension 1 and channels-last memory, shape kept.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let kind = x.kind();
        let f = x.to_kind(Kind::Float);
        // ||x||^2 >= 1e-24 is the reference's ||x|| >= 1e-12; a plain sum of squares is several times
        // faster on the CPU than a vector norm over the channel dimension.
        let scale = f.square().sum_dim_intlist(1, true, Kind::Float).clamp_min(1e-24).rsqrt();
        let mut shape = vec![1; x.dim()];
        shape[1] = self.channels;
        let gamma = self.gamma.view(shape.as_slice()) * (self.channels as f64).sqrt();
        if kind == Kind::Float { f * scale * gamma } else { (f * scale).to_kind(kind) * gamma }
    }
}

const KERNEL: [i64; 3] = [3, 3, 3];

/// Two causal convolutions with a shortcut.
#[derive(Debug)]
pub(super) struct ResidualBlock {
    norm1: WanRmsNorm,
    conv1: CausalConv3d,
    norm2: WanRmsNorm,
    conv2: CausalConv3d,
    conv_shortcut: Option<CausalConv3d>,
}

impl ResidualBlock {
    pub fn new(w: &Weights, slots: &mut SlotCounter, input: i64, output: i64) -> Result<Self> {
        let conv_shortcut = (input != output)
            .then(|| {
                CausalConv3d::new(
                    &w.pp("conv_shortcut"),
                    slots,
                    (input, output),
                    [1, 1, 1],
                    Init::FanIn(1.0),
                )
            })
            .transpose()?;
        Ok(Self {
            norm1: WanRmsNorm::new(&w.pp("norm1"), input, 3)?,
            conv1: CausalConv3d::new(
                &w.pp("conv1"),
                slots,
                (input, output),
                KERNEL,
                Init::FanIn(1.4),
            )?,
            norm2: WanRmsNorm::new(&w.pp("norm2"), output, 3)?,
            // Small at first, so that a deep stack starts near its shortcuts.
            conv2: CausalConv3d::new(
                &w.pp("conv2"),
                slots,
                (output, output),
                KERNEL,
                Init::FanIn(0.3),
            )?,
            conv_shortcut,
        })
    }

    pub fn forward(&self, x: &Tensor, caches: &mut FeatureCaches) -> Tensor {
        let h = self.conv1.forward(&self.norm1.forward(x).silu(), caches);
        let h = self.conv2.forward(&self.norm2.forward(&h).silu(), caches);
        match &self.conv_shortcut {
            Some(conv) => h + conv.forward(x, caches),
            None => h + x,
        }
    }
}

/// Single-head attention within each frame.
#[derive(Debug)]
pub(super) struct AttentionBlock {
    norm: WanRmsNorm,
    to_qkv: FrameConv2d,
    proj: FrameConv2d,
}

impl AttentionBlock {
    pub fn new(w: &Weights, dim: i64) -> Result<Self> {
        Ok(Self {
            norm: WanRmsNorm::new(&w.pp("norm"), dim, 2)?,
            to_qkv: FrameConv2d::new(&w.pp("to_qkv"), (dim, 3 * dim), 1, Init::FanIn(1.0))?,
            proj: FrameConv2d::new(&w.pp("proj"), (dim, dim), 1, Init::FanIn(0.3))?,
        })
    }

    pub fn forward(&self, x: &Tensor) -> Tensor {
        let frames = fold_frames(x); // [N, C, H, W]
        let s = frames.size();
        let qkv = self.to_qkv.forward(&self.norm.forward(&frames), 0, 1); // [N, 3C, H, W]
        let qkv = qkv.permute([0, 2, 3, 1]).reshape([s[0], 1, s[2] * s[3], 3 * s[1]]);
        let qkv = qkv.chunk(3, -1); // 3 x [N, 1, HW, C]
        let out = Tensor::scaled_dot_product_attention::<Tensor>(
            &qkv[0], &qkv[1], &qkv[2], None, 0.0, false, None, false,
        );
        let out = out.reshape([s[0], s[2], s[3], s[1]]).permute([0, 3, 1, 2]);
        unfold_frames(&(self.proj.forward(&out, 0, 1) + frames), x.size()[0])
    }
}

/// Residual block, attention, residual block.
#[derive(Debug)]
pub(super) struct MidBlock {
    resnets: [ResidualBlock; 2],
    attention: AttentionBlock,
}

impl MidBlock {
    pub fn new(w: &Weights, slots: &mut SlotCounter, dim: i64) -> Result<Self> {
        let first = ResidualBlock::new(&w.pp("resnets").pp(0), slots, dim, dim)?;
        let attention = AttentionBlock::new(&w.pp("attentions").pp(0), dim)?;
        let second = ResidualBlock::new(&w.pp("resnets").pp(1), slots, dim, dim)?;
        Ok(Self { resnets: [first, second], attention })
    }

    pub fn forward(&self, x: &Tensor, caches: &mut FeatureCaches) -> Tensor {
        let x = self.resnets[0].forward(x, caches);
        let x = self.attention.forward(&x);
        self.resnets[1].forward(&x, caches)
    }
}

/// Halves height and width, and time if it has a `time_conv`.
#[derive(Debug)]
pub(super) struct Downsample {
    resample: FrameConv2d,
    time_conv: Option<CausalConv3d>,
}

impl Downsample {
    pub fn new(w: &Weights, slots: &mut SlotCounter, dim: i64, temporal: bool) -> Result<Self> {
        let resample = FrameConv2d::new(&w.pp("resample").pp(1), (dim, dim), 3, Init::FanIn(1.0))?;
        let time_conv = temporal
            .then(|| {
                CausalConv3d::new(
                    &w.pp("time_conv"),
                    slots,
                    (dim, dim),
                    [3, 1, 1],
                    Init::FanIn(1.0),
                )
            })
            .transpose()?;
        Ok(Self { resample, time_conv })
    }

    pub fn forward(&self, x: &Tensor, caches: &mut FeatureCaches) -> Tensor {
        let frames = fold_frames(x);
        // One row and column of zeros at the bottom and right only.
        let frames = self.resample.forward(&frames.constant_pad_nd([0, 1, 0, 1]), 0, 2);
        let x = unfold_frames(&frames, x.size()[0]);
        match &self.time_conv {
            None => x,
            Some(conv) => downsample_time(conv, &x, caches),
        }
    }
}

/// The first frame of a clip passes as it is; after it, every window of three frames that starts at an even
/// one gives one frame.
fn downsample_time(conv: &CausalConv3d, x: &Tensor, caches: &mut FeatureCaches) -> Tensor {
    let slot = conv.slot().expect("a time_conv is temporal");
    let cache = caches.slot(slot);
    let tail = FeatureCache::Tail(last_frames(x, 1));
    match std::mem::replace(cache, tail) {
        FeatureCache::Tail(previous) => conv.forward_strided(&Tensor::cat(&[&previous, x], 2)),
        _ if x.size()[2] == 1 => x.shallow_clone(),
        _ => Tensor::cat(&[x.narrow(2, 0, 1), conv.forward_strided(x)], 2),
    }
}

/// Doubles height and width, and time if it has a `time_conv`.
#[derive(Debug)]
pub(super) struct Upsample {
    resample: FrameConv2d,
    time_conv: Option<CausalConv3d>,
}

impl Upsample {
    pub fn new(
        w: &Weights,
        slots: &mut SlotCounter,
        channels: (i64, i64),
        temporal: bool,
    ) -> Result<Self> {
        let dim = channels.0;
        let resample = FrameConv2d::new(&w.pp("resample").pp(1), channels, 3, Init::FanIn(1.0))?;
        let time_conv = temporal
            .then(|| {
                CausalConv3d::new(
                    &w.pp("time_conv"),
                    slots,
                    (dim, 2 * dim),
                    [3, 1, 1],
                    Init::FanIn(1.0),
                )
            })
            .transpose()?;
        Ok(Self { resample, time_conv })
    }

    pub fn forward(&self, x: &Tensor, caches: &mut FeatureCaches) -> Tensor {
        let x = match &self.time_conv {
            None => x.shallow_clone(),
            Some(conv) => upsample_time(conv, x, caches),
        };
        let s = x.size();
        let frames = fold_frames(&x).upsample_nearest2d([2 * s[3], 2 * s[4]], None, None);
        unfold_frames(&self.resample.forward(&frames, 1, 1), s[0])
    }
}

/// The first frame of a clip stays one frame; each later one becomes two, and the convolution that makes
/// them does not see the first.
fn upsample_time(conv: &CausalConv3d, x: &Tensor, caches: &mut FeatureCaches) -> Tensor {
    let slot = conv.slot().expect("a time_conv is temporal");
    let first = matches!(caches.slot(slot), FeatureCache::Empty);
    if !first {
        return interleave(&conv.forward(x, caches));
    }
    *caches.slot(slot) = FeatureCache::FirstFrame;
    let length = x.size()[2];
    if length == 1 {
        return x.shallow_clone();
    }
    let later = interleave(&conv.forward(&x.narrow(2, 1, length - 1), caches));
    Tensor::cat(&[x.narrow(2, 0, 1), later], 2)
}

/// `[B, 2C, T, H, W]` to `[B, C, 2T, H, W]`: the halves of the channels are alternate frames.
fn interleave(x: &Tensor) -> Tensor {
    let s = x.size();
    let split = x.permute([0, 2, 3, 4, 1]).reshape([s[0], s[2], s[3], s[4], 2, s[1] / 2]);
    let frames = split.permute([0, 1, 4, 2, 3, 5]).reshape([s[0], 2 * s[2], s[3], s[4], s[1] / 2]);
    frames.permute([0, 4, 1, 2, 3])
}

/// Weightless shortcut around a down block: pixels fold into channels, groups of channels are averaged.
#[derive(Debug)]
pub(super) struct AvgDown3D {
    pub output: i64,
    pub factor_t: i64,
    pub factor_s: i64,
}

impl AvgDown3D {
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let (ft, fs) = (self.factor_t, self.factor_s);
        // Zeros in front fill the first frame of a clip up to a pair.
        let missing = (ft - x.size()[2] % ft) % ft;
        let x = if missing > 0 {
            x.constant_pad_nd([0, 0, 0, 0, missing, 0])
        } else {
            x.shallow_clone()
        };
        let s = x.size();
        let (t, h, w) = (s[2] / ft, s[3] / fs, s[4] / fs);
        let folded = x
            .permute([0, 2, 3, 4, 1]) // [B, T, H, W, C]
            .reshape([s[0], t, ft, h, fs, w, fs, s[1]])
            .permute([0, 1, 3, 5, 7, 2, 4, 6]) // [B, t, h, w, C, ft, fs, fs]
            .reshape([s[0], t, h, w, self.output, s[1] * ft * fs * fs / self.output]);
        folded.mean_dim(-1, false, None).permute([0, 4, 1, 2, 3])
    }
}

/// Weightless shortcut around an up block: channels repeat and unfold into pixels.
#[derive(Debug)]
pub(super) struct DupUp3D {
    pub output: i64,
    pub factor_t: i64,
    pub factor_s: i64,
}

impl DupUp3D {
    /// `first` says that `x` starts a clip, whose first frame then stays one frame.
    pub fn forward(&self, x: &Tensor, first: bool) -> Tensor {
        let (ft, fs) = (self.factor_t, self.factor_s);
        let s = x.size();
        let repeats = self.output * ft * fs * fs / s[1];
        let unfolded = x
            .permute([0, 2, 3, 4, 1]) // [B, T, H, W, C]
            .unsqueeze(-1)
            .expand([s[0], s[2], s[3], s[4], s[1], repeats], false)
            .reshape([s[0], s[2], s[3], s[4], self.output, ft, fs, fs])
            .permute([0, 1, 5, 2, 6, 3, 7, 4]) // [B, T, ft, H, fs, W, fs, C']
            .reshape([s[0], s[2] * ft, s[3] * fs, s[4] * fs, self.output])
            .permute([0, 4, 1, 2, 3]);
        if first { unfolded.narrow(2, ft - 1, s[2] * ft - (ft - 1)) } else { unfolded }
    }
}
