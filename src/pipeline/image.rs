// SPDX-License-Identifier: MPL-2.0
//! Pictures as conditions: resizing as Pillow resizes, and what the image encoder wants.
//!
//! Pillow's resampling (`Resample.c`): each output pixel is a weighted sum of input pixels under a kernel stretched by the
//! reduction, along rows and along columns in turn, each pass rounded to 8 bits, with weights in 22-bit fixed point. Which
//! pass comes first changes the rounding; the rule here was found by trial with Pillow 13.0.

use std::path::Path;

use serde::Deserialize;
use tch::{Kind, Tensor};

use super::Pipeline;
use crate::error::{Error, Result};

/// A resampling kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    Bicubic,
    Lanczos,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        match self {
            Self::Bicubic => {
                const A: f64 = -0.5;
                let x = x.abs();
                if x < 1.0 {
                    ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
                } else if x < 2.0 {
                    (((x - 5.0) * x + 8.0) * x - 4.0) * A
                } else {
                    0.0
                }
            }
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Lanczos => 0.0,
        }
    }
}

fn sinc(x: f64) -> f64 {
    let x = x * std::f64::consts::PI;
    if x == 0.0 { 1.0 } else { x.sin() / x }
}

/// Bits after the point of a weight.
const PRECISION: u32 = 22;

/// For each output position the first input position and the weights from there on.
fn weights(input: usize, output: usize, filter: Filter) -> Vec<(usize, Vec<i64>)> {
    let scale = input as f64 / output as f64;
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    (0..output)
        .map(|position| {
            let center = (position as f64 + 0.5) * scale;
            let first = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(input);
            let raw: Vec<f64> =
                (first..end).map(|x| filter.weight((x as f64 - center + 0.5) / stretch)).collect();
            let total: f64 = raw.iter().sum();
            let fixed = |w: &f64| (w / total * f64::from(1 << PRECISION)).round() as i64;
            (first, raw.iter().map(fixed).collect())
        })
        .collect()
}

/// Resizes along the middle axis of `[outer, length, inner]` bytes.
fn resize_axis(
    pixels: &[u8],
    length: usize,
    inner: usize,
    output: usize,
    filter: Filter,
) -> Vec<u8> {
    if length == output {
        return pixels.to_vec();
    }
    let weights = weights(length, output, filter);
    let mut result = Vec::with_capacity(pixels.len() / length * output);
    for plane in pixels.chunks_exact(length * inner) {
        for (first, weights) in &weights {
            for i in 0..inner {
                let sum: i64 = weights
                    .iter()
                    .enumerate()
                    .map(|(k, w)| w * i64::from(plane[(first + k) * inner + i]))
                    .sum();
                let rounded = (sum + (1 << (PRECISION - 1))) >> PRECISION;
                result.push(rounded.clamp(0, 255) as u8);
            }
        }
    }
    result
}

/// `[3, H, W]` in [0, 1], 8 bits deep, to `[3, height, width]` in [0, 1], as Pillow does it; the aspect ratio is not kept.
pub fn resize(image: &Tensor, (width, height): (i64, i64), filter: Filter) -> Tensor {
    let s = image.size();
    let bytes = (image.to_kind(Kind::Float) * 255.0).round().clamp(0.0, 255.0).to_kind(Kind::Uint8);
    let bytes = bytes.to_device(tch::Device::Cpu).contiguous();
    let mut pixels = vec![0u8; bytes.numel()];
    bytes.copy_data_u8(&mut pixels, bytes.numel());
    let (rows, columns) = (s[1] as usize, s[2] as usize);
    let (new_columns, new_rows) = (width as usize, height as usize);
    let (fewer_rows, fewer_columns) = (s[1] - height, s[2] - width);
    let pixels = if fewer_rows > (2 * fewer_columns).max(0) {
        let pixels = resize_axis(&pixels, rows, columns, new_rows, filter);
        resize_axis(&pixels, columns, 1, new_columns, filter)
    } else {
        let pixels = resize_axis(&pixels, columns, 1, new_columns, filter);
        resize_axis(&pixels, rows, new_columns, new_rows, filter)
    };
    let resized = Tensor::from_slice(&pixels).view([s[0], height, width]);
    resized.to_kind(Kind::Float) / 255.0
}

/// `image_processor/preprocessor_config.json`; defaults are CLIP's.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct ImageProcessor {
    image_mean: [f64; 3],
    image_std: [f64; 3],
    rescale_factor: f64,
    size: Size,
    crop_size: Size,
}

/// Written as a number, by the shortest edge, or by both edges.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(untagged)]
enum Size {
    ShortestEdge { shortest_edge: i64 },
    Both { height: i64, width: i64 },
    Number(i64),
}

impl Default for ImageProcessor {
    fn default() -> Self {
        Self {
            image_mean: [0.48145466, 0.4578275, 0.40821073],
            image_std: [0.26862954, 0.26130258, 0.27577711],
            rescale_factor: 1.0 / 255.0,
            size: Size::ShortestEdge { shortest_edge: 224 },
            crop_size: Size::Number(224),
        }
    }
}

impl ImageProcessor {
    /// Reads the folder's settings, if it has any.
    pub(super) fn from_folder(folder: &Path) -> Result<Self> {
        let path = folder.join("preprocessor_config.json");
        let Ok(text) = std::fs::read_to_string(&path) else { return Ok(Self::default()) };
        serde_json::from_str(&text)
            .map_err(|e| Error::checkpoint(path, format!("cannot be used: {e}")))
    }

    /// `[3, H, W]` in [0, 1] to `[1, 3, crop, crop]`, normalised: the shorter side to size, then the middle.
    fn process(&self, image: &Tensor) -> Tensor {
        let (height, width) = (image.size()[1], image.size()[2]);
        let target = match self.size {
            Size::Both { height, width } => (width, height),
            Size::ShortestEdge { shortest_edge: edge } | Size::Number(edge) => {
                let long = edge * width.max(height) / width.min(height);
                if width <= height { (edge, long) } else { (long, edge) }
            }
        };
        let (crop_width, crop_height) = match self.crop_size {
            Size::Both { height, width } => (width, height),
            Size::ShortestEdge { shortest_edge: edge } | Size::Number(edge) => (edge, edge),
        };
        let resized = resize(image, target, Filter::Bicubic);
        let (top, left) = ((target.1 - crop_height) / 2, (target.0 - crop_width) / 2);
        let cropped = resized.narrow(1, top, crop_height).narrow(2, left, crop_width);
        let column =
            |values: &[f64; 3]| Tensor::from_slice(values).to_kind(Kind::Float).view([3, 1, 1]);
        let scaled = cropped * (255.0 * self.rescale_factor);
        ((scaled - column(&self.image_mean)) / column(&self.image_std)).unsqueeze(0)
    }
}

impl Pipeline {
    /// Embeddings `[N, tokens, d]` of pictures `[3, H, W]` in [0, 1] (the first frame, or the first and the last), for folders with
    /// an image encoder.
    ///
    /// # Errors
    /// [`Error::Setting`] if the folder has none.
    pub fn encode_images(&self, images: &[Tensor]) -> Result<Tensor> {
        let (model, processor) = self.image_encoder.as_ref().ok_or_else(|| {
            let name = format!("{}: image_encoder", self.info.folder.display());
            Error::setting(name, "nothing", "CLIPVisionModel")
        })?;
        let pixels: Vec<Tensor> =
            images.iter().map(|image| processor.process(image).to_device(self.device)).collect();
        Ok(model.forward(&Tensor::cat(&pixels, 0)))
    }

    /// The image encoder, in folders that have one.
    pub fn image_encoder(&self) -> Option<&crate::models::clip_vision::ClipVisionModel> {
        self.image_encoder.as_ref().map(|(model, _)| model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn a_flat_picture_stays_flat() {
        for filter in [Filter::Bicubic, Filter::Lanczos] {
            let grey = Tensor::full([3, 20, 31], 51.0 / 255.0, (Kind::Float, Device::Cpu));
            let resized = resize(&grey, (13, 47), filter);
            assert_eq!(resized.size(), [3, 47, 13]);
            assert!((resized - 51.0 / 255.0).abs().max().double_value(&[]) < 1e-6);
        }
    }

    #[test]
    fn the_same_size_changes_nothing() {
        let image = Tensor::randint(256, [3, 6, 5], (Kind::Float, Device::Cpu)) / 255.0;
        assert_eq!(resize(&image, (5, 6), Filter::Lanczos), image);
    }
}
