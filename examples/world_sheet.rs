// SPDX-License-Identifier: MPL-2.0
//! Draws a contact sheet of the procedural world: one clip a row, time from left to right.
//!
//! `cargo run --release --features training --example world_sheet -- OUT.png [FIRST] [ROWS] [WIDTHxHEIGHT] [FRAMES] [STEP] [WORDS]`

use anyhow::{Context, Result};
use gstdit::training::world::{Scene, Split};
use image::RgbImage;

const FPS: f64 = 16.0;
const GAP: u32 = 2;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: u64| -> Result<u64> {
        match args.get(at) {
            Some(text) => text.parse().with_context(|| format!("argument {}: {text:?}", at + 1)),
            None => Ok(default),
        }
    };
    let path = args.first().context("where to write the sheet, as a PNG file")?;
    let (first, rows) = (number(1, 0)?, number(2, 12)?);
    let size = args.get(3).map_or("224x128", String::as_str);
    let (width, height) = size.split_once('x').context("size as WIDTHxHEIGHT")?;
    let (width, height): (usize, usize) = (width.parse()?, height.parse()?);
    let (columns, step) = (number(4, 5)?, number(5, 4)?);
    // Only scenes whose attributes have all these words; "collage" for footage of no world in their styles.
    let words: Vec<&str> = args.get(6).map_or(Vec::new(), |words| words.split(',').collect());
    let collage = words.contains(&"collage");

    let (cell_width, cell_height) = (width as u32 + GAP, height as u32 + GAP);
    let mut sheet = RgbImage::new(columns as u32 * cell_width, rows as u32 * cell_height);
    let fits = |scene: &Scene| {
        let a = scene.attributes;
        let all =
            [a.colour.name(), a.shape.name(), a.motion.name(), a.background.name(), a.style.name()];
        let words = words.iter().filter(|word| !word.is_empty() && **word != "collage");
        words.into_iter().all(|word| all.contains(word))
    };
    let scene = |index| Scene { collage, ..Scene::from_index(index, Split::Any) };
    let scenes = (first..).map(|index| (index, scene(index)));
    for (row, (index, scene)) in
        scenes.filter(|(_, scene)| fits(scene)).take(rows as usize).enumerate()
    {
        println!("row {row}: index {index}: {:?}", scene.attributes);
        for column in 0..columns {
            let pixels = scene.render(width, height, 1, (column * step) as i64, FPS);
            let tile = RgbImage::from_raw(width as u32, height as u32, pixels).context("tile")?;
            let (x, y) = (column as u32 * cell_width, row as u32 * cell_height);
            image::imageops::replace(&mut sheet, &tile, i64::from(x), i64::from(y));
        }
    }
    sheet.save(path).with_context(|| format!("cannot write {path}"))?;
    Ok(())
}
