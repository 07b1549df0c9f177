// SPDX-License-Identifier: MPL-2.0
//! Contact sheets: rows of frames in one PNG.

use std::path::Path;

use anyhow::{Context, Result};
use tch::{Kind, Tensor};

/// Writes videos `[B, 3, F, H, W]` in [-1, 1] as rows of at most `columns` frames each; the videos of several
/// tensors alternate row by row (input over output).
///
/// # Errors
/// When the file cannot be written.
pub fn write(path: &Path, videos: &[&Tensor], columns: i64) -> Result<()> {
    let mut rows = Vec::new();
    let batch = videos[0].size()[0];
    for index in 0..batch {
        for video in videos {
            rows.push(row(&video.get(index), columns));
        }
    }
    let sheet = Tensor::cat(&rows, 0); // [H', W', 3]
    let s = sheet.size();
    let mut bytes = vec![0u8; sheet.numel()];
    let length = bytes.len();
    sheet.contiguous().view(-1).f_copy_data_u8(&mut bytes, length)?;
    image::RgbImage::from_raw(s[1] as u32, s[0] as u32, bytes)
        .context("sheet size")?
        .save(path)
        .with_context(|| format!("writing {}", path.display()))
}

/// As [`write()`], with frames at half their size: to be looked at in a browser, and kept.
///
/// # Errors
/// As [`write()`].
pub fn write_small(path: &Path, videos: &[&Tensor], columns: i64) -> Result<()> {
    let half = |video: &&Tensor| video.avg_pool3d([1, 2, 2], [1, 2, 2], 0, false, true, None);
    let small: Vec<Tensor> = videos.iter().map(half).collect();
    write(path, &small.iter().collect::<Vec<_>>(), columns)
}

/// `[3, F, H, W]` to one row of frames `[H+2, W', 3]`, evenly spaced in time, with a dark gap.
fn row(video: &Tensor, columns: i64) -> Tensor {
    let frames = video.size()[1];
    let columns = columns.min(frames);
    let picked: Vec<Tensor> = (0..columns)
        .map(|i| {
            let at = if columns > 1 { i * (frames - 1) / (columns - 1) } else { 0 };
            video.select(1, at).constant_pad_nd([0, 2, 0, 2])
        })
        .collect();
    let joined = Tensor::cat(&picked, 2); // [3, H, W']
    ((joined * 127.5 + 127.5).clamp(0.0, 255.0).round()).to_kind(Kind::Uint8).permute([1, 2, 0])
}
