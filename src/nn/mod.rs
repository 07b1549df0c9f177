// SPDX-License-Identifier: MPL-2.0
//! Small layers that the models are made of; fields carry the names of checkpoint keys.
//!
//! Layers compute with tch's panicking operations; [`crate::torch::guarded`] is the boundary.

pub mod attention;
pub mod conv3d;

use tch::{Kind, Tensor};

use crate::error::Result;
use crate::weights::lora::Adapter;
use crate::weights::{Init, Weights};

/// `y = x W^T + b`, and what an adapter adds while one is trained.
#[derive(Debug)]
pub struct Linear {
    pub weight: Tensor,
    pub bias: Option<Tensor>,
    adapter: Option<Adapter>,
}

impl Linear {
    /// A layer with bias; `weight` is `[out, in]`.
    ///
    /// # Errors
    /// Those of [`Weights::get`].
    pub fn new(w: &Weights, input: i64, output: i64) -> Result<Self> {
        Self::with_init(w, input, output, Init::FanIn(1.0))
    }

    /// As [`Linear::new`], with the start of the weight chosen (training only).
    ///
    /// # Errors
    /// Those of [`Weights::get`].
    pub fn with_init(w: &Weights, input: i64, output: i64, init: Init) -> Result<Self> {
        let weight = w.get("weight", &[output, input], init)?;
        let bias = Some(w.get("bias", &[output], Init::Zeros)?);
        Ok(Self { weight, bias, adapter: w.adapter(output, input)? })
    }

    /// A layer without bias.
    ///
    /// # Errors
    /// Those of [`Weights::get`].
    pub fn without_bias(w: &Weights, input: i64, output: i64, init: Init) -> Result<Self> {
        let weight = w.get("weight", &[output, input], init)?;
        Ok(Self { weight, bias: None, adapter: w.adapter(output, input)? })
    }

    /// `[.., in]` to `[.., out]` in the kind of the weight.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let x = x.to_kind(self.weight.kind());
        let y = x.linear(&self.weight, self.bias.as_ref());
        match &self.adapter {
            None => y,
            Some(adapter) => y + adapter.forward(&x),
        }
    }
}

/// Layer normalisation over the last dimension, computed and returned in f32.
#[derive(Debug)]
pub struct LayerNorm {
    affine: Option<(Tensor, Tensor)>,
    dim: i64,
    eps: f64,
}

impl LayerNorm {
    /// With learned scale and shift.
    ///
    /// # Errors
    /// Those of [`Weights::get`].
    pub fn affine(w: &Weights, dim: i64, eps: f64) -> Result<Self> {
        let w = w.with_kind(Kind::Float);
        let affine = (w.get("weight", &[dim], Init::Ones)?, w.get("bias", &[dim], Init::Zeros)?);
        Ok(Self { affine: Some(affine), dim, eps })
    }

    /// Without weights.
    pub fn plain(dim: i64, eps: f64) -> Self {
        Self { affine: None, dim, eps }
    }

    /// `[.., dim]` to `[.., dim]` in f32.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let (weight, bias) = match &self.affine {
            Some((weight, bias)) => (Some(weight), Some(bias)),
            None => (None, None),
        };
        x.to_kind(Kind::Float).layer_norm([self.dim], weight, bias, self.eps, false)
    }
}

/// Root-mean-square normalisation over the last dimension, computed in f32 (`torch.nn.RMSNorm`).
#[derive(Debug)]
pub struct RmsNorm {
    pub weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// `weight` is `[dim]`.
    ///
    /// # Errors
    /// Those of [`Weights::get`].
    pub fn new(w: &Weights, dim: i64, eps: f64) -> Result<Self> {
        Ok(Self { weight: w.get("weight", &[dim], Init::Ones)?, eps })
    }

    /// `[.., dim]` to `[.., dim]` in the kind of `x`: one cast at the end, as torch does.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let weight = self.weight.to_kind(x.kind());
        x.rms_norm([self.weight.size()[0]], Some(&weight), self.eps)
    }
}
