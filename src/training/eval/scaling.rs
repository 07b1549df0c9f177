// SPDX-License-Identifier: MPL-2.0
//! Quality against training compute: the results of one recipe at several lengths, as a plot and as data.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use embedded_graphics::geometry::Point as Point2;
use embedded_graphics::mono_font::{MonoTextStyle, ascii::FONT_8X13};
use embedded_graphics::pixelcolor::Rgb888;
use embedded_graphics::prelude::{
    DrawTarget, Drawable, OriginDimensions, Pixel, Primitive, RgbColor, Size,
};
use embedded_graphics::primitives::{Circle, Line, PrimitiveStyle, Rectangle};
use embedded_graphics::text::{Alignment, Baseline, Text, TextStyleBuilder};
use image::{RgbImage, imageops};
use serde_json::{Value, json};

use crate::training::judge::ATTRIBUTES;

/// Options of `dit-train plot-scaling`.
#[derive(Debug, Clone)]
pub struct ScalingOptions {
    /// What `dit-train eval` wrote; models are taken in the order of the files and within each.
    pub results: Vec<PathBuf>,
    /// The training compute of each model, in any unit.
    pub compute: Vec<f64>,
    /// The picture; the data is written beside it, ending in `.json`.
    pub out: PathBuf,
}

/// One figure of one model with its interval, as shares of 1.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Point {
    compute: f64,
    accuracy: f64,
    low: f64,
    high: f64,
}

/// One line of the plot.
#[derive(Debug, Clone, PartialEq)]
struct Curve {
    name: &'static str,
    points: Vec<Point>,
}

/// Draws the plot and writes its data.
///
/// # Errors
/// When a file is not a result of `dit-train eval`, or the numbers of models and of compute differ.
pub fn plot(options: &ScalingOptions) -> Result<()> {
    let mut models = Vec::new();
    let mut sources = Vec::new();
    for path in &options.results {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let result: Value =
            serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        let Some(found) = result["models"].as_array() else {
            bail!("{}: no list `models`; expected what dit-train eval writes", path.display());
        };
        models.extend(found.iter().cloned());
        sources.push(json!({ "commit": result["commit"], "command": result["command"], "hardware": result["hardware"], "seed": result["seed"] }));
    }
    ensure!(
        models.len() == options.compute.len(),
        "--compute: found {} numbers for {} models, expected one for each",
        options.compute.len(),
        models.len()
    );
    ensure!(
        options.compute.iter().all(|compute| compute.is_finite() && *compute > 0.0),
        "--compute: found {:?}, expected numbers above 0",
        options.compute
    );
    let names = ATTRIBUTES.iter().copied().chain(["all"]);
    let curves = names
        .map(|name| Ok(Curve { name, points: points(name, &models, &options.compute)? }))
        .collect::<Result<Vec<_>>>()?;
    draw(&curves).save(&options.out).with_context(|| options.out.display().to_string())?;
    let data = json!({
        "compute": options.compute,
        "models": models.iter().map(|model| model["model"].clone()).collect::<Vec<_>>(),
        "curves": curves.iter().map(curve_json).collect::<Vec<_>>(),
        "results": sources,
    });
    let path = options.out.with_extension("json");
    std::fs::write(&path, serde_json::to_string_pretty(&data)? + "\n")
        .with_context(|| path.display().to_string())
}

/// The points of an attribute, by rising compute; none for a model of which it was not judged, as motion in stills.
fn points(name: &str, models: &[Value], compute: &[f64]) -> Result<Vec<Point>> {
    let mut points = models
        .iter()
        .zip(compute)
        .filter(|(model, _)| model[name]["judged"].as_u64() != Some(0))
        .map(|(model, &compute)| {
            let figure = |key: &str| {
                model[name][key].as_f64().with_context(|| format!("no number at {name}.{key}"))
            };
            let (accuracy, low, high) = (figure("accuracy")?, figure("low")?, figure("high")?);
            Ok(Point { compute, accuracy, low, high })
        })
        .collect::<Result<Vec<_>>>()?;
    points.sort_by(|a, b| a.compute.total_cmp(&b.compute));
    Ok(points)
}

fn curve_json(curve: &Curve) -> Value {
    let points: Vec<Value> = curve
        .points
        .iter()
        .map(|p| json!({ "compute": p.compute, "accuracy": p.accuracy, "low": p.low, "high": p.high }))
        .collect();
    json!({ "name": curve.name, "points": points })
}

const WIDTH: u32 = 760;
const HEIGHT: u32 = 420;
/// Lines are drawn this much larger and scaled down, which smooths them.
const FINE: u32 = 3;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 620.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 360.0;
const GREY: Rgb888 = Rgb888::new(215, 215, 215);
const DARK: Rgb888 = Rgb888::new(40, 40, 40);
/// In the order of the curves: Okabe and Ito's colours, which people of all kinds of sight can tell apart.
const COLOURS: [Rgb888; 6] = [
    Rgb888::new(213, 94, 0),
    Rgb888::new(0, 114, 178),
    Rgb888::new(0, 158, 115),
    Rgb888::new(230, 159, 0),
    Rgb888::new(204, 121, 167),
    Rgb888::new(0, 0, 0),
];

/// An image that shapes and letters can be drawn on.
struct Canvas(RgbImage);

impl OriginDimensions for Canvas {
    fn size(&self) -> Size {
        Size::new(self.0.width(), self.0.height())
    }
}

impl DrawTarget for Canvas {
    type Color = Rgb888;
    type Error = std::convert::Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb888>>>(
        &mut self,
        pixels: I,
    ) -> std::result::Result<(), Self::Error> {
        for Pixel(at, colour) in pixels {
            if let (Ok(x), Ok(y)) = (u32::try_from(at.x), u32::try_from(at.y))
                && let Some(pixel) = self.0.get_pixel_mut_checked(x, y)
            {
                *pixel = image::Rgb([colour.r(), colour.g(), colour.b()]);
            }
        }
        Ok(())
    }
}

impl Canvas {
    fn new(scale: u32) -> Self {
        Self(RgbImage::from_pixel(WIDTH * scale, HEIGHT * scale, image::Rgb([255; 3])))
    }

    fn line(&mut self, from: (f64, f64), to: (f64, f64), colour: Rgb888, width: u32) {
        let line = Line::new(fine(from), fine(to));
        let Ok(()) = line.into_styled(PrimitiveStyle::with_stroke(colour, width)).draw(self);
    }

    fn dot(&mut self, at: (f64, f64), colour: Rgb888) {
        let dot = Circle::with_center(fine(at), 7 * FINE);
        let Ok(()) = dot.into_styled(PrimitiveStyle::with_fill(colour)).draw(self);
    }

    /// Letters at their own size, centred at a height.
    fn text(&mut self, text: &str, (x, y): (f64, f64), alignment: Alignment, colour: Rgb888) {
        let style = TextStyleBuilder::new().alignment(alignment).baseline(Baseline::Middle).build();
        let letters = MonoTextStyle::new(&FONT_8X13, colour);
        let at = Point2::new(x as i32, y as i32);
        let Ok(_) = Text::with_text_style(text, at, letters, style).draw(self);
    }
}

/// A place in the enlarged picture.
fn fine((x, y): (f64, f64)) -> Point2 {
    let scale = f64::from(FINE);
    Point2::new((x * scale).round() as i32, (y * scale).round() as i32)
}

/// Where compute and accuracy lie in the picture; compute on a logarithmic axis.
struct Axes {
    least: f64,
    most: f64,
}

impl Axes {
    fn of(curves: &[Curve]) -> Self {
        let all = curves.iter().flat_map(|curve| &curve.points).map(|point| point.compute);
        let (least, most) = (all.clone().fold(f64::MAX, f64::min), all.fold(0.0, f64::max));
        // A single point lies in the middle.
        if least < most {
            Self { least, most }
        } else {
            Self { least: least / 2.0, most: least * 2.0 }
        }
    }

    fn x(&self, compute: f64) -> f64 {
        let share = (compute / self.least).ln() / (self.most / self.least).ln();
        LEFT + 20.0 + share * (RIGHT - LEFT - 40.0)
    }

    fn y(share: f64) -> f64 {
        BOTTOM - share * (BOTTOM - TOP)
    }
}

fn draw(curves: &[Curve]) -> RgbImage {
    let axes = Axes::of(curves);
    let mut canvas = Canvas::new(FINE);
    for tenth in (0..=10).step_by(2) {
        let y = Axes::y(f64::from(tenth) / 10.0);
        canvas.line((LEFT, y), (RIGHT, y), GREY, FINE);
    }
    canvas.line((LEFT, BOTTOM), (RIGHT, BOTTOM), DARK, FINE + 1);
    canvas.line((LEFT, TOP), (LEFT, BOTTOM), DARK, FINE + 1);
    for (curve, colour) in curves.iter().zip(COLOURS) {
        let places: Vec<(f64, f64)> =
            curve.points.iter().map(|p| (axes.x(p.compute), Axes::y(p.accuracy))).collect();
        for (point, place) in curve.points.iter().zip(&places) {
            let bar = [(place.0, Axes::y(point.low)), (place.0, Axes::y(point.high))];
            canvas.line(bar[0], bar[1], lighter(colour), FINE);
            canvas.dot(*place, colour);
        }
        for pair in places.windows(2) {
            canvas.line(pair[0], pair[1], colour, 2 * FINE);
        }
    }
    for (row, colour) in (0..curves.len()).zip(COLOURS) {
        let y = legend_y(row) as i32 * FINE as i32;
        let corner = Point2::new((RIGHT as i32 + 18) * FINE as i32, y - 5 * FINE as i32);
        let square = Rectangle::new(corner, Size::new(10 * FINE, 10 * FINE));
        let Ok(()) = square.into_styled(PrimitiveStyle::with_fill(colour)).draw(&mut canvas);
    }
    let small = imageops::resize(&canvas.0, WIDTH, HEIGHT, imageops::FilterType::Triangle);
    let mut canvas = Canvas(small);
    label(&mut canvas, curves, &axes);
    canvas.0
}

fn label(canvas: &mut Canvas, curves: &[Curve], axes: &Axes) {
    for tenth in (0..=10).step_by(2) {
        let y = Axes::y(f64::from(tenth) / 10.0);
        canvas.text(&format!("{} %", tenth * 10), (LEFT - 8.0, y), Alignment::Right, DARK);
    }
    for point in curves.first().map_or(&[][..], |curve| &curve.points) {
        let at = (axes.x(point.compute), BOTTOM + 14.0);
        canvas.text(&format!("{}x", point.compute), at, Alignment::Center, DARK);
    }
    for (row, curve) in curves.iter().enumerate() {
        canvas.text(curve.name, (RIGHT + 34.0, legend_y(row)), Alignment::Left, DARK);
    }
    let middle = (LEFT + RIGHT) / 2.0;
    canvas.text("training compute (logarithmic)", (middle, BOTTOM + 38.0), Alignment::Center, DARK);
    let title = "right on held-out prompts, judged from pixels (95 % intervals)";
    canvas.text(title, (middle, TOP - 16.0), Alignment::Center, DARK);
}

fn legend_y(row: usize) -> f64 {
    TOP + 12.0 + 22.0 * row as f64
}

/// Half way to white.
fn lighter(colour: Rgb888) -> Rgb888 {
    let half = |value: u8| 255 - (255 - value) / 2;
    Rgb888::new(half(colour.r()), half(colour.g()), half(colour.b()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(accuracies: &[f64]) -> Value {
        let score = |p: f64| json!({ "accuracy": p, "low": p - 0.05, "high": (p + 0.05).min(1.0) });
        let model = |p: &f64| {
            let mut model = json!({ "model": format!("m{p}"), "all": score(*p / 2.0) });
            for name in ATTRIBUTES {
                model[name] = score(*p);
            }
            model
        };
        json!({ "commit": "abc", "models": accuracies.iter().map(model).collect::<Vec<_>>() })
    }

    #[test]
    fn results_of_several_files_are_drawn_and_kept_as_data() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("a.json"), result(&[0.9]).to_string()).unwrap();
        std::fs::write(path("b.json"), result(&[0.1, 0.5]).to_string()).unwrap();
        let mut options = ScalingOptions {
            results: vec![path("a.json"), path("b.json")],
            compute: vec![16.0, 1.0, 4.0],
            out: path("plot.png"),
        };
        plot(&options).unwrap();
        let image = image::open(path("plot.png")).unwrap().to_rgb8();
        let axes = Axes { least: 1.0, most: 16.0 };
        // Under the point at 4x, 50 %, drawn last of those that coincide: style.
        let (x, y) = (axes.x(4.0) as u32, Axes::y(0.5) as u32);
        assert_eq!(image.get_pixel(x, y).0, [204, 121, 167]);
        let data: Value =
            serde_json::from_str(&std::fs::read_to_string(path("plot.json")).unwrap()).unwrap();
        let shape = &data["curves"][1]["points"];
        assert_eq!(
            (shape[0]["accuracy"].as_f64(), shape[2]["compute"].as_f64()),
            (Some(0.1), Some(16.0))
        );
        options.compute.pop();
        assert!(plot(&options).unwrap_err().to_string().contains("2 numbers for 3 models"));
        std::fs::write(path("a.json"), "{}").unwrap();
        assert!(plot(&options).unwrap_err().to_string().contains("dit-train eval"));
    }
}
