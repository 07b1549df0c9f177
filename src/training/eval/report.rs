// SPDX-License-Identifier: MPL-2.0
//! Results as people and programs want them: a table, a JSON file, contact sheets.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use tch::Tensor;

use super::clips::{Clips, Kept};
use super::long::{Long, LongVideo};
use super::{EvalOptions, Measured, Reconstruction};
use crate::pipeline::StartLevel;
use crate::torch;
use crate::training::judge::ATTRIBUTES;
use crate::training::sheet;
use crate::training::vae::LONG_SECONDS;

/// Words in a table.
const WEAKEST: usize = 4;

/// Frames of each row of a contact sheet.
const COLUMNS: i64 = 6;

/// A folder's name as part of a file's name.
pub(super) fn label(folder: &Path) -> String {
    let names = folder.components().filter_map(|part| match part {
        std::path::Component::Normal(name) => name.to_str(),
        _ => None,
    });
    let names: Vec<&str> = names.collect();
    names[names.len().saturating_sub(2)..].join("-")
}

/// Writes `<label>-successes.png` and `<label>-failures.png`, as far as there are any.
pub(super) fn sheets(out: &Path, label: &str, clips: &Clips) -> Result<()> {
    for (name, kept) in [("successes", &clips.right), ("failures", &clips.wrong)] {
        let rows: Vec<Tensor> = kept.iter().map(|kept| kept.video.shallow_clone()).collect();
        if !rows.is_empty() {
            let path = out.join(format!("{label}-{name}.png"));
            sheet::write_small(&path, &[&Tensor::stack(&rows, 0)], COLUMNS)?;
        }
    }
    Ok(())
}

/// Writes `<label>-long.png`: of each long video the first second and the last, side by side.
pub(super) fn long_sheet(out: &Path, label: &str, long: &Long) -> Result<()> {
    let rows: Vec<Tensor> = long.videos.iter().map(|video| video.seconds.shallow_clone()).collect();
    if rows.is_empty() {
        return Ok(());
    }
    let path = out.join(format!("{label}-long.png"));
    sheet::write_small(&path, &[&Tensor::stack(&rows, 0)], COLUMNS)
}

/// Writes `side-by-side.png`: for each of the first prompts the truth, then every model in order.
pub(super) fn side_by_side(out: &Path, truth: &Clips, models: &[Measured]) -> Result<()> {
    const PROMPTS: usize = 4;
    let mut rows = Vec::new();
    // Every other prompt only words the one before differently.
    for at in (0..truth.first.len()).step_by(2).take(PROMPTS) {
        rows.push(&truth.first[at].video);
        rows.extend(models.iter().map(|model| &model.clips.first[at].video));
    }
    let same = rows.iter().all(|row| row.size() == rows[0].size());
    let rows: Vec<Tensor> = rows.iter().map(|row| row.shallow_clone()).collect();
    // Models of other sizes cannot share a sheet.
    if !same {
        return Ok(());
    }
    sheet::write_small(&out.join("side-by-side.png"), &[&Tensor::stack(&rows, 0)], COLUMNS)
}

/// Prints the table and writes `eval.json`.
pub(super) fn write(options: &EvalOptions, truth: &Clips, models: &[Measured]) -> Result<()> {
    let clips = if options.restyle { "plain clips restyled" } else { "true clips made anew" };
    match options.from {
        Some(StartLevel::Noise(level)) => println!("{clips} from a noise level of {level}"),
        Some(StartLevel::Strength(strength)) => println!("{clips} with a strength of {strength}"),
        None => {}
    }
    println!("{}", table(truth, models));
    let command: Vec<String> = std::env::args().skip(1).collect();
    let json = json!({
        "commit": env!("COMMIT_ID"),
        "command": format!("dit-train {}", command.join(" ")),
        "hardware": torch::machine(options.device),
        "device": torch::device_name(options.device),
        "seed": options.seed,
        "prompts": options.prompts,
        "true_clips": clips_json(truth),
        "models": models.iter().map(|model| model_json(model, truth)).collect::<Vec<_>>(),
    });
    let path = options.out.join("eval.json");
    let text = serde_json::to_string_pretty(&json)? + "\n";
    std::fs::write(&path, text).with_context(|| path.display().to_string())
}

/// A row for each figure, a column for the truth and for each model.
fn table(truth: &Clips, models: &[Measured]) -> String {
    let mut table = String::new();
    let mut row = |name: &str, cells: Vec<String>| {
        let _ = writeln!(table, "| {name} | {} |", cells.join(" | "));
    };
    let each = |of_truth: String, cell: &dyn Fn(&Measured) -> String| {
        std::iter::once(of_truth).chain(models.iter().map(cell)).collect::<Vec<_>>()
    };
    row("", each("true clips".into(), &|m| m.folder.display().to_string()));
    row("---", each("---".into(), &|_| "---".into()));
    for (at, (name, score)) in truth.total().named().enumerate() {
        let cell = |m: &Measured| {
            m.clips.total().named().nth(at).map_or_else(String::new, |(_, score)| score.cell())
        };
        row(name, each(score.cell(), &cell));
    }
    let wordings = |clips: &Clips| clips.by_wording.map(|scores| scores.all.cell()).join(", ");
    row("all: canonical caption, other words", each(wordings(truth), &|m| wordings(&m.clips)));
    row(
        "least often right",
        each(truth.words.weakest(WEAKEST), &|m| m.clips.words.weakest(WEAKEST)),
    );
    row(
        "flicker, levels of 255",
        each(format!("{:.2}", truth.flicker), &|m| format!("{:.2}", m.clips.flicker)),
    );
    row(
        "step from frame to frame",
        each(format!("{:.2}", truth.difference), &|m| format!("{:.2}", m.clips.difference)),
    );
    let none = || "-".to_owned();
    let reconstruction = |m: &Measured| {
        let cell =
            |r: &Reconstruction| format!("{:.2} dB, {:.3}; {:.2} dB", r.psnr, r.ssim, r.late_psnr);
        m.reconstruction.as_ref().map_or_else(none, cell)
    };
    let name = format!("autoencoder: PSNR, SSIM; PSNR in the last of {LONG_SECONDS} s");
    row(&name, each(none(), &reconstruction));
    let still_seen = |m: &Measured| {
        m.reconstruction.as_ref().map_or_else(none, |r| {
            let shares = r.scores.each.map(|score| format!("{:.0}", 100.0 * score.interval().0));
            format!("{} %", shares.join(", "))
        })
    };
    row(
        "after the autoencoder: colour, shape, motion, background, style",
        each(none(), &still_seen),
    );
    let still_weakest =
        |m: &Measured| m.reconstruction.as_ref().map_or_else(none, |r| r.words.weakest(WEAKEST));
    row("after the autoencoder: least often right", each(none(), &still_weakest));
    let seam = |m: &Measured| {
        let ratio =
            m.long.as_ref().and_then(|long| long.seam_ratio().map(|r| (r, long.seam.count)));
        ratio.map_or_else(none, |(ratio, count)| format!("{ratio:.2} ({count} seams)"))
    };
    row("step between chunks / within", each("1".into(), &seam));
    let drift = |m: &Measured| {
        m.long.as_ref().map_or_else(none, |long| {
            format!("{} of {} x {} s", long.kept.cell(), long.prompts, long.seconds)
        })
    };
    row("right at the start and still at the end", each(none(), &drift));
    row("steps, guidance", each(none(), &|m| format!("{}, {}", m.steps, m.guidance_scale)));
    row("seconds a clip", each(none(), &|m| format!("{:.2}", m.clips.seconds_a_clip)));
    table
}

fn clips_json(clips: &Clips) -> Value {
    let mut json = match clips.total().json() {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    json.insert("canonical".into(), clips.by_wording[0].json());
    json.insert("other_words".into(), clips.by_wording[1].json());
    json.insert("words".into(), clips.words.json());
    json.insert("flicker".into(), json!(clips.flicker));
    json.insert("frame_difference".into(), json!(clips.difference));
    Value::Object(json)
}

fn model_json(model: &Measured, truth: &Clips) -> Value {
    let mut json = clips_json(&model.clips);
    json["model"] = json!(model.folder.display().to_string());
    json["num_inference_steps"] = json!(model.steps);
    json["guidance_scale"] = json!(model.guidance_scale);
    json["seconds_a_clip"] = json!(model.clips.seconds_a_clip);
    json["flicker_ratio"] = json!(model.clips.flicker / truth.flicker.max(1e-9));
    json["successes"] = model.clips.right.iter().map(kept_json).collect();
    json["failures"] = model.clips.wrong.iter().map(kept_json).collect();
    if let Some(r) = &model.reconstruction {
        json["vae_psnr_db"] = json!(r.psnr);
        json["vae_late_psnr_db"] = json!(r.late_psnr);
        json["vae_ssim"] = json!(r.ssim);
        json["vae_clips"] = json!(r.clips);
        json["vae_judged"] = r.scores.json();
        json["vae_words"] = r.words.json();
    }
    if let Some(long) = &model.long {
        json["long"] = json!({
            "prompts": long.prompts,
            "seconds": long.seconds,
            "seams": long.seam.count,
            "seam_difference": long.seam.value(),
            "ordinary_difference": long.ordinary.value(),
            "seam_ratio": long.seam_ratio(),
            "start": long.start.json(),
            "end": long.end.json(),
            "kept": long.kept.json(),
            "videos": long.videos.iter().map(long_json).collect::<Vec<_>>(),
        });
    }
    json
}

/// The ends of a long video in words.
fn long_json(video: &LongVideo) -> Value {
    let [start, end] = [&video.start, &video.end].map(LongVideo::right);
    json!({ "prompt": video.prompt, "right_at_start": start, "right_at_end": end })
}

/// A row of a contact sheet in words.
fn kept_json(kept: &Kept) -> Value {
    let Kept { prompt, wanted, seen, .. } = kept;
    let pairs = wanted.names().into_iter().zip(seen.names());
    let answers = seen.compare(wanted);
    let wrong = ATTRIBUTES.iter().zip(pairs).zip(answers);
    let wrong = wrong.filter(|(_, answer)| *answer == Some(false));
    let wrong: Vec<String> = wrong
        .map(|((name, (wanted, seen)), _)| format!("{name}: wanted {wanted}, seen {seen}"))
        .collect();
    json!({ "prompt": prompt, "wrong": wrong })
}
