// SPDX-License-Identifier: MPL-2.0
//! Clips of the world as files: YUV4MPEG2 with a caption beside each, for other programs to work on.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::{Scene, Split};
use crate::training::captions::canonical;

/// Options of `dit-train world`.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    pub out: PathBuf,
    /// Number of the first clip.
    pub first: u64,
    pub clips: u64,
    pub width: usize,
    pub height: usize,
    /// Frames of each clip, at 16 a second.
    pub frames: usize,
    /// Put behind each caption.
    pub suffix: String,
}

/// Writes `clip-NUMBER.y4m` and `clip-NUMBER.txt` for scenes of the training split.
///
/// # Errors
/// When the folder cannot be written, or the size is odd.
pub fn export(options: &ExportOptions) -> Result<()> {
    let (width, height) = (options.width, options.height);
    ensure!(
        width > 0 && height > 0 && width.is_multiple_of(2) && height.is_multiple_of(2),
        "--width, --height: found {width}x{height}, expected even numbers of pixels"
    );
    std::fs::create_dir_all(&options.out).with_context(|| options.out.display().to_string())?;
    for number in options.first..options.first + options.clips {
        let scene = Scene::from_index(number, Split::Train);
        let pixels = scene.render(width, height, options.frames, 0, 16.0);
        let path = options.out.join(format!("clip-{number:06}.y4m"));
        write(&path, (width, height), &pixels).with_context(|| path.display().to_string())?;
        let caption = format!("{}{}", canonical(&scene.attributes), options.suffix);
        let path = path.with_extension("txt");
        std::fs::write(&path, caption + "\n").with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// RGB frames as 4:4:4 video range (ITU-R BT.601).
fn write(path: &Path, (width, height): (usize, usize), pixels: &[u8]) -> std::io::Result<()> {
    let mut file = BufWriter::new(std::fs::File::create(path)?);
    writeln!(file, "YUV4MPEG2 W{width} H{height} F16:1 Ip A1:1 C444 XCOLORRANGE=LIMITED")?;
    for frame in pixels.chunks_exact(width * height * 3) {
        file.write_all(b"FRAME\n")?;
        for [offset, red, green, blue] in [
            [16.0, 65.481, 128.553, 24.966],
            [128.0, -37.797, -74.203, 112.0],
            [128.0, 112.0, -93.786, -18.214],
        ] {
            let plane = frame.chunks_exact(3).map(|pixel| {
                let [r, g, b] = [pixel[0], pixel[1], pixel[2]].map(|v| f32::from(v) / 255.0);
                (offset + red * r + green * g + blue * b).round() as u8
            });
            file.write_all(&plane.collect::<Vec<u8>>())?;
        }
    }
    file.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clips_and_captions_lie_side_by_side() {
        let folder = tempfile::tempdir().unwrap();
        let options = ExportOptions {
            out: folder.path().to_owned(),
            first: 7,
            clips: 2,
            width: 32,
            height: 16,
            frames: 3,
            suffix: ", neon".into(),
        };
        export(&options).unwrap();
        let video = std::fs::read(folder.path().join("clip-000008.y4m")).unwrap();
        let header = video.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        assert_eq!(video.len(), header + 3 * (6 + 3 * 32 * 16));
        let caption = std::fs::read_to_string(folder.path().join("clip-000007.txt")).unwrap();
        assert!(caption.ends_with(", neon\n") && caption.starts_with('a'), "{caption}");
        assert!(export(&ExportOptions { width: 33, ..options }).is_err());
    }
}
