// SPDX-License-Identifier: MPL-2.0
//! A user's folder of clips with captions, read into latents and sorted into buckets by size and length.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use tch::Tensor;

use crate::frames::file::{self, Probe};
use crate::pipeline::{FolderInfo, Pipeline, RgbFrame};
use crate::training::bank::Shape;
use crate::training::generate;
use crate::training::progress::Progress;

/// Windows that an encoded piece of a clip is long: what follows the first window is met as a continuation.
const WINDOWS_A_PIECE: i64 = 2;
/// Most frames that are read of one file.
const LONGEST_WINDOWS: i64 = 32;
/// Shapes of frame that clips are cut to, beside the model's own and the same upright.
const ASPECTS: [f64; 5] = [16.0 / 9.0, 4.0 / 3.0, 1.0, 3.0 / 4.0, 9.0 / 16.0];

/// A file, what it shows, and perhaps the same without what is to be learnt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Captioned {
    pub path: PathBuf,
    pub caption: String,
    pub before: Option<PathBuf>,
}

/// What the name of such a file has behind that of the clip: `clip.before.mp4` of `clip.mp4`.
const BEFORE: &str = ".before";

/// What a folder holds, and what of it cannot be used and why.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub clips: Vec<Captioned>,
    pub skipped: Vec<(PathBuf, String)>,
}

/// A line of a JSONL file, by any of the names that are usual.
#[derive(serde::Deserialize)]
struct Line {
    #[serde(alias = "file", alias = "video", alias = "media_path", alias = "path")]
    file_name: PathBuf,
    #[serde(alias = "caption", alias = "prompt")]
    text: String,
    before: Option<PathBuf>,
}

/// Clips of a folder with their captions: those that its `*.jsonl` names, else every file with a `.txt` of its name beside it,
/// and perhaps a `.before` file.
///
/// # Errors
/// A folder that cannot be read, or a JSONL file with a line that is not `{"file_name": .., "text": ..}`.
pub(super) fn list(folder: &Path) -> Result<Listing> {
    ensure!(
        folder.is_dir(),
        "{}: no such folder; --data names a folder of clips",
        folder.display()
    );
    let mut files = Vec::new();
    collect(folder, &mut files)?;
    files.sort_unstable();
    let of_kind = |path: &PathBuf, kind: &str| path.extension().is_some_and(|e| e == kind);
    let tables: Vec<&PathBuf> = files.iter().filter(|path| of_kind(path, "jsonl")).collect();
    let mut listing = Listing::default();
    for table in &tables {
        read_table(table, &mut listing)?;
    }
    if !tables.is_empty() {
        return Ok(listing);
    }
    let befores: BTreeMap<PathBuf, &PathBuf> =
        files.iter().filter_map(|path| Some((before_which(path)?, path))).collect();
    let clips = files.iter().filter(|path| !of_kind(path, "txt") && before_which(path).is_none());
    for path in clips {
        match std::fs::read_to_string(path.with_extension("txt")) {
            Ok(caption) => {
                let before = befores.get(&path.with_extension("")).map(|path| (*path).clone());
                let caption = caption.trim().to_owned();
                listing.clips.push(Captioned { path: path.clone(), caption, before });
            }
            Err(error) => listing.skipped.push((path.clone(), format!("its .txt: {error}"))),
        }
    }
    Ok(listing)
}

/// The clip, without its extension, that a file of this name is the state before of.
fn before_which(path: &Path) -> Option<PathBuf> {
    let stem = path.file_stem()?.to_str()?;
    Some(path.with_file_name(stem.strip_suffix(BEFORE)?))
}

/// All files below a folder but hidden ones.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry.with_context(|| folder.display().to_string())?.path();
        let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
        if path.is_dir() && !hidden {
            collect(&path, files)?;
        } else if !hidden {
            files.push(path);
        }
    }
    Ok(())
}

fn read_table(table: &Path, listing: &mut Listing) -> Result<()> {
    let text = std::fs::read_to_string(table).with_context(|| table.display().to_string())?;
    let folder = table.parent().unwrap_or(Path::new("."));
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let Line { file_name, text, before } = serde_json::from_str(line).with_context(|| {
            let place = format!("{}, line {}", table.display(), number + 1);
            format!("{place}: expected {{\"file_name\": \"clip.mp4\", \"text\": \"a caption\"}}")
        })?;
        let before = before.map(|before| folder.join(before));
        listing.clips.push(Captioned { path: folder.join(file_name), caption: text, before });
    }
    Ok(())
}

/// A piece of a clip: normalised latents `[z, T, h, w]`, and perhaps those of the same without what is to be learnt.
pub(super) struct Entry {
    pub latents: Tensor,
    pub caption: String,
    pub before: Option<Tensor>,
}

/// Pieces of one shape.
pub(super) type Buckets = BTreeMap<Shape, Vec<Entry>>;

/// What was read.
pub(super) struct Clips {
    pub buckets: Buckets,
    pub read: usize,
    pub skipped: usize,
}

/// Decodes and encodes every clip; those that cannot be read are named and left out.
///
/// # Errors
/// When none is left.
pub(super) fn encode(listing: Listing, pipeline: &Pipeline) -> Result<Clips> {
    let progress = Progress::new("reading clips", listing.clips.len() as u64, 0, 0);
    let mut clips = Clips { buckets: Buckets::new(), read: 0, skipped: 0 };
    let skip = |path: &Path, why: &str| {
        progress.note(&format!("skipped {}: {why}", path.display()));
    };
    for (path, why) in &listing.skipped {
        skip(path, why);
        clips.skipped += 1;
    }
    for (number, clip) in listing.clips.iter().enumerate() {
        match encode_clip(clip, pipeline) {
            Ok(pieces) => {
                clips.read += 1;
                for (shape, entry) in pieces {
                    clips.buckets.entry(shape).or_default().push(entry);
                }
            }
            Err(error) => {
                skip(&clip.path, &format!("{error:#}"));
                clips.skipped += 1;
            }
        }
        progress.step(number as u64 + 1, &[]);
    }
    if clips.read == 0 {
        bail!(
            "no clip could be read, {} skipped; clips need a caption in a .txt of the same name, or a .jsonl that names them",
            clips.skipped
        );
    }
    let shapes: Vec<String> = clips
        .buckets
        .iter()
        .map(|(Shape { width, height, frames }, entries)| {
            format!("{} of {frames} frames at {width}x{height}", entries.len())
        })
        .collect();
    progress.note(&format!(
        "{} clip(s) read, {} skipped: {}",
        clips.read,
        clips.skipped,
        shapes.join(", ")
    ));
    Ok(clips)
}

fn encode_clip(clip: &Captioned, pipeline: &Pipeline) -> Result<Vec<(Shape, Entry)>> {
    let info = pipeline.info();
    let probe = file::probe(&clip.path)?;
    let (width, height) = bucket_size(info, &probe);
    let window = info.native.num_frames;
    let longest = if probe.still { 1 } else { window * LONGEST_WINDOWS };
    let size = (width as usize, height as usize);
    let frames = file::read(&clip.path, &probe, size, info.native.framerate, longest as usize)?;
    let before = clip.before.as_deref().map(|path| {
        let before = || -> Result<Vec<RgbFrame>> {
            let probe = file::probe(path)?;
            let found = file::read(path, &probe, size, info.native.framerate, frames.len())?;
            let (found_frames, expected) = (found.len(), frames.len());
            ensure!(found_frames == expected, "found {found_frames} frames, expected {expected}");
            Ok(found)
        };
        before().with_context(|| path.display().to_string())
    });
    let before = before.transpose()?;
    let _no_grad = tch::no_grad_guard();
    pieces(info, frames.len() as i64)
        .into_iter()
        .map(|(start, length)| {
            let latents = |frames: &[RgbFrame]| -> Result<Tensor> {
                let video = generate::to_tensor(&frames[start as usize..][..length as usize])?;
                Ok(pipeline.encode_video(&video.unsqueeze(0)).get(0).contiguous())
            };
            let entry = Entry {
                latents: latents(&frames)?,
                caption: clip.caption.clone(),
                before: before.as_deref().map(latents).transpose()?,
            };
            Ok((Shape { width, height, frames: length }, entry))
        })
        .collect()
}

/// The size to cut a clip to: of the model's own area (or the clip's, where that is smaller), in the nearest shape.
fn bucket_size(info: &FolderInfo, probe: &Probe) -> (i64, i64) {
    let native = &info.native;
    let own = native.width as f64 / native.height as f64;
    let wanted = (probe.width / probe.height).ln();
    let aspects = ASPECTS.iter().copied().chain([own, 1.0 / own]);
    let aspect = aspects
        .min_by(|a, b| (a.ln() - wanted).abs().total_cmp(&(b.ln() - wanted).abs()))
        .unwrap_or(own);
    let area = ((native.width * native.height) as f64).min(probe.width * probe.height);
    let multiple = info.size_multiple();
    let round = |side: f64| ((side / multiple as f64).round() as i64).max(1) * multiple;
    (round((area * aspect).sqrt()), round((area / aspect).sqrt()))
}

/// Start and length, which is whole latent frames, of the pieces that so many frames are cut into.
fn pieces(info: &FolderInfo, frames: i64) -> Vec<(i64, i64)> {
    let factor = info.vae.temporal_factor();
    let whole = |frames: i64| (frames - 1) / factor * factor + 1;
    let longest = (info.native.num_frames - 1) * WINDOWS_A_PIECE + 1;
    let mut pieces = Vec::new();
    let mut start = 0;
    while start < frames {
        let length = whole((frames - start).min(longest));
        // A last frame or two of a long clip are not worth a bucket of their own.
        if start > 0 && length < whole(info.native.num_frames) {
            break;
        }
        pieces.push((start, length));
        start += length;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> FolderInfo {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/default");
        FolderInfo::open(&folder).unwrap()
    }

    #[test]
    fn clips_go_to_the_nearest_shape_of_the_models_area() {
        let info = info();
        let probe = |width: f64, height: f64| Probe { width, height, still: false };
        assert_eq!(bucket_size(&info, &probe(1920.0, 1080.0)), (224, 128));
        assert_eq!(bucket_size(&info, &probe(1080.0, 1920.0)), (128, 224));
        assert_eq!(bucket_size(&info, &probe(640.0, 640.0)), (160, 160));
        // Nothing is blown up.
        assert_eq!(bucket_size(&info, &probe(64.0, 64.0)), (64, 64));
    }

    #[test]
    fn long_clips_are_cut_and_short_ones_kept() {
        let info = info();
        assert_eq!(pieces(&info, 1), [(0, 1)]);
        assert_eq!(pieces(&info, 12), [(0, 9)]);
        assert_eq!(pieces(&info, 40), [(0, 33)]);
        assert_eq!(pieces(&info, 60), [(0, 33), (33, 25)]);
    }

    #[test]
    fn captions_come_from_texts_or_tables() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let files = [("a.mp4", ""), ("a.txt", " one \n"), ("a.before.mkv", ""), ("b.webm", "")];
        for (name, text) in files {
            std::fs::write(path(name), text).unwrap();
        }
        let listing = list(folder.path()).unwrap();
        let before = Some(path("a.before.mkv"));
        let clip = Captioned { path: path("a.mp4"), caption: "one".into(), before };
        assert_eq!(listing.clips, [clip]);
        assert_eq!(listing.skipped.len(), 1);
        assert_eq!(listing.skipped[0].0, path("b.webm"));
        let table = "{\"file_name\": \"b.webm\", \"text\": \"two\", \"before\": \"c.mp4\"}\n\n{\"video\": \"a.mp4\", \"caption\": \"three\"}\n";
        std::fs::write(path("metadata.jsonl"), table).unwrap();
        let clips = list(folder.path()).unwrap().clips;
        assert_eq!([&clips[0].caption, &clips[1].caption], ["two", "three"]);
        assert_eq!([&clips[0].before, &clips[1].before], [&Some(path("c.mp4")), &None]);
        std::fs::write(path("metadata.jsonl"), "{\"text\": \"two\"}").unwrap();
        let error = format!("{:#}", list(folder.path()).unwrap_err());
        assert!(error.contains("metadata.jsonl, line 1") && error.contains("file_name"), "{error}");
        assert!(list(&path("none")).unwrap_err().to_string().contains("no such folder"));
    }
}
