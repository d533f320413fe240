//! Curves of a run as SVG: `loss.svg`, and the figures of the report.
//!
//! Colours are of medium lightness on a transparent ground, so that a drawing reads on a light page and on a dark one.
//! Long runs are drawn in as many pieces as there are pixels: the size of a file does not depend on the length of the
//! run. Values that are not finite leave gaps; a few extreme ones do not flatten the rest.

use super::metrics::{Record, StepRecord};
use super::{WriteError, write_atomically};
use plotters::coord::Shift;
use plotters::prelude::*;
use std::io::Write;
use std::path::Path;

const WIDTH: u32 = 960;
const LEFT_MARGIN: u32 = 70;
/// Pieces that a curve is drawn in: about one a pixel.
const PIECES: usize = 800;
/// Share of the values at either end that may fall outside the vertical range.
const CLIPPED: f64 = 0.005;

const INK: RGBColor = RGBColor(0x80, 0x80, 0x80);
const BLUE: RGBColor = RGBColor(0x3B, 0x82, 0xD6);
const ORANGE: RGBColor = RGBColor(0xE0, 0x7B, 0x22);
const GREEN: RGBColor = RGBColor(0x2C, 0x9C, 0x69);

/// A drawing failed, or could not be written.
#[derive(Debug, thiserror::Error)]
pub enum PlotError {
    #[error("cannot draw {what}: {why}")]
    Draw { what: String, why: String },
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// How the points of a series are shown.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Shape {
    /// Lowest and highest value of each piece: the noise of single batches.
    FaintLine,
    Line,
    LineWithPoints,
}

struct Series {
    /// Name in the legend; none where it is empty.
    name: &'static str,
    color: RGBColor,
    shape: Shape,
    /// (step, value), by ascending step, all finite.
    points: Vec<(f64, f64)>,
}

struct Panel {
    title: &'static str,
    height: u32,
    series: Vec<Series>,
}

/// The loss on training batches (single ones faint, smoothed strong), the evaluations, and the learning rate below.
///
/// # Errors
/// [`PlotError::Draw`].
pub fn loss_svg(records: &[Record]) -> Result<String, PlotError> {
    draw("the loss curve", &[loss_panel(records), rate_panel(records)])
}

/// The norm of the gradient before clipping.
///
/// # Errors
/// [`PlotError::Draw`].
pub fn grad_norm_svg(records: &[Record]) -> Result<String, PlotError> {
    let points = steps(records, |step| step.grad_norm);
    let series = noisy("", "", ORANGE, points);
    draw("the gradient norm", &[Panel { title: "gradient norm", height: 260, series }])
}

/// Tokens per second.
///
/// # Errors
/// [`PlotError::Draw`].
pub fn throughput_svg(records: &[Record]) -> Result<String, PlotError> {
    let points = steps(records, |step| step.tokens_per_second);
    let series = noisy("", "", GREEN, points);
    draw("the throughput", &[Panel { title: "tokens per second", height: 260, series }])
}

/// Writes [`loss_svg`] to a file, whole or not at all.
///
/// # Errors
/// [`PlotError`].
pub fn write_loss_svg(path: &Path, records: &[Record]) -> Result<(), PlotError> {
    let svg = loss_svg(records)?;
    Ok(write_atomically(path, |writer| writer.write_all(svg.as_bytes()))?)
}

fn loss_panel(records: &[Record]) -> Panel {
    let mut series =
        noisy("training batches", "training, smoothed", BLUE, steps(records, |step: &StepRecord| step.loss));
    let evaluations = records.iter().filter_map(|record| match record {
        Record::Evaluation(evaluation) => Some((evaluation.step as f64, evaluation.val_loss)),
        Record::Step(_) => None,
    });
    let points = evaluations.filter(|(_, loss)| loss.is_finite()).collect();
    series.push(Series { name: "validation", color: ORANGE, shape: Shape::LineWithPoints, points });
    Panel { title: "loss", height: 420, series }
}

fn rate_panel(records: &[Record]) -> Panel {
    let points = steps(records, |step| step.lr);
    let series = vec![Series { name: "", color: GREEN, shape: Shape::Line, points }];
    Panel { title: "learning rate", height: 150, series }
}

/// A value of each update, where it is finite.
fn steps(records: &[Record], value: impl Fn(&StepRecord) -> f64) -> Vec<(f64, f64)> {
    let values = records.iter().filter_map(|record| match record {
        Record::Step(step) => Some((step.step as f64, value(step))),
        Record::Evaluation(_) => None,
    });
    values.filter(|(_, value)| value.is_finite()).collect()
}

/// The values themselves, faint, and their smoothed course.
fn noisy(raw_name: &'static str, name: &'static str, color: RGBColor, points: Vec<(f64, f64)>) -> Vec<Series> {
    let smoothed = smooth(&points);
    vec![
        Series { name: raw_name, color, shape: Shape::FaintLine, points },
        Series { name, color, shape: Shape::Line, points: smoothed },
    ]
}

/// Exponential moving average over about a hundredth of the run, corrected for its start as Adam's moments are.
fn smooth(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let keep = 1.0 - 1.0 / (points.len() as f64 / 100.0).max(1.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    let average = |&(step, value): &(f64, f64)| {
        sum = keep * sum + (1.0 - keep) * value;
        weight = keep * weight + (1.0 - keep);
        (step, sum / weight)
    };
    points.iter().map(average).collect()
}

/// At most about `PIECES` pieces of a curve, each reduced by `reduce`.
fn pieces(points: &[(f64, f64)], reduce: impl Fn(&[(f64, f64)]) -> Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let length = points.len().div_ceil(PIECES).max(1);
    if length == 1 {
        return points.to_vec();
    }
    points.chunks(length).flat_map(reduce).collect()
}

/// Lowest and highest point of a piece, in the order in which they came.
fn extremes(piece: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let by_value = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
    let (Some(&low), Some(&high)) = (piece.iter().min_by(by_value), piece.iter().max_by(by_value)) else {
        return Vec::new();
    };
    if low.0 <= high.0 { vec![low, high] } else { vec![high, low] }
}

/// The mean of a piece.
fn mean(piece: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let count = piece.len() as f64;
    let sum = piece.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
    vec![(sum.0 / count, sum.1 / count)]
}

/// A range that holds all but the most extreme values, with some air, and is never empty.
fn vertical_range(panel: &Panel) -> std::ops::Range<f64> {
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    for series in &panel.series {
        let mut values: Vec<f64> = series.points.iter().map(|point| point.1).collect();
        if values.is_empty() {
            continue;
        }
        values.sort_by(f64::total_cmp);
        let outside = if series.shape == Shape::FaintLine { (values.len() as f64 * CLIPPED) as usize } else { 0 };
        // The smoothed course of values whose extremes are cut off must not bring them back.
        if series.shape == Shape::Line && panel.series.iter().any(|other| other.shape == Shape::FaintLine) {
            continue;
        }
        low = low.min(values[outside]);
        high = high.max(values[values.len() - 1 - outside]);
    }
    if low > high {
        return 0.0..1.0;
    }
    let air = 0.05 * (high - low);
    // A range no wider than rounding would give the axis no ticks to choose.
    if air > 1e-9 * high.abs().max(1e-300) {
        let bottom = if low >= 0.0 { (low - air).max(0.0) } else { low - air };
        return bottom..high + air;
    }
    match high.abs() {
        0.0 => -1.0..1.0,
        size => low - 0.1 * size..high + 0.1 * size,
    }
}

fn horizontal_range(panels: &[Panel]) -> std::ops::Range<f64> {
    let steps = || panels.iter().flat_map(|panel| &panel.series).flat_map(|series| &series.points).map(|point| point.0);
    let last = steps().fold(1.0, f64::max);
    let first = steps().fold(last, f64::min);
    if first < last { first..last } else { first - 1.0..last + 1.0 }
}

fn draw(what: &str, panels: &[Panel]) -> Result<String, PlotError> {
    let height = panels.iter().map(|panel| panel.height).sum();
    let mut svg = String::new();
    {
        let mut area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        let steps = horizontal_range(panels);
        for panel in panels {
            let (top, rest) = area.split_vertically(panel.height);
            draw_panel(&top, panel, steps.clone())
                .map_err(|why| PlotError::Draw { what: what.into(), why: why.to_string() })?;
            area = rest;
        }
        area.present().map_err(|why| PlotError::Draw { what: what.into(), why: why.to_string() })?;
    }
    Ok(svg)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn draw_panel(
    area: &Area<'_>,
    panel: &Panel,
    steps: std::ops::Range<f64>,
) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
    let values = vertical_range(panel);
    let clamp = |(step, value): (f64, f64)| (step, value.clamp(values.start, values.end));
    let font = |size: i32| ("system-ui, sans-serif", size).into_font().color(&INK);
    let mut chart = ChartBuilder::on(area)
        .caption(panel.title, font(18))
        .margin_right(24)
        .margin_bottom(4)
        .x_label_area_size(26)
        .y_label_area_size(LEFT_MARGIN)
        .build_cartesian_2d(steps, values.clone())?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(INK.mix(0.25))
        .axis_style(INK)
        .x_labels(8)
        .y_labels(if panel.height < 200 { 4 } else { 7 })
        .x_label_formatter(&|step| step_label(*step))
        .y_label_formatter(&|value| value_label(*value, values.end - values.start))
        .label_style(font(14))
        .draw()?;
    for series in &panel.series {
        let (color, width) = match series.shape {
            Shape::FaintLine => (series.color.mix(0.4), 1),
            Shape::Line | Shape::LineWithPoints => (series.color.mix(1.0), 2),
        };
        let points = match series.shape {
            Shape::FaintLine => pieces(&series.points, extremes),
            Shape::Line | Shape::LineWithPoints => pieces(&series.points, mean),
        };
        let style = color.stroke_width(width);
        let drawn = chart.draw_series(LineSeries::new(points.iter().copied().map(clamp), style))?;
        if !series.name.is_empty() && !series.points.is_empty() {
            drawn.label(series.name).legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], style));
        }
        if series.shape == Shape::LineWithPoints {
            let dots = points.into_iter().map(|point| Circle::new(clamp(point), 4, series.color.filled()));
            chart.draw_series(dots)?;
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .legend_area_size(28)
        .label_font(font(15))
        .background_style(TRANSPARENT)
        .border_style(TRANSPARENT)
        .draw()?;
    Ok(())
}

/// `500`, `12k`, `1.5M`.
fn step_label(step: f64) -> String {
    let short = |value: f64, unit: &str| {
        let text = format!("{value:.2}");
        format!("{}{unit}", text.trim_end_matches('0').trim_end_matches('.'))
    };
    match step.abs() {
        size if size >= 1e6 => short(step / 1e6, "M"),
        size if size >= 1e4 => short(step / 1e3, "k"),
        _ => short(step, ""),
    }
}

/// A tick of an axis that spans `range`: as many decimals as tell neighbours apart.
fn value_label(value: f64, range: f64) -> String {
    if range >= 1e4 {
        return step_label(value);
    }
    if range < 0.01 {
        // Zero comes out of a sum of steps, and so almost zero.
        let value = if value.abs() < 1e-6 * range { 0.0 } else { value };
        return if value == 0.0 { "0".into() } else { format!("{value:.1e}").replace(".0e", "e") };
    }
    let decimals = (1.0 - (range / 5.0).log10().floor()).clamp(0.0, 4.0) as usize;
    let text = format!("{value:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::super::metrics::EvaluationRecord;
    use super::*;

    /// A run that looks like one: a falling loss with noise, a warm-up and a cosine, an evaluation now and then.
    fn run(count: usize) -> Vec<Record> {
        let mut records = Vec::new();
        let mut noise = 0.37f64;
        for step in 1..=count {
            noise = (noise * 9301.0 + 49.297) % 1.0;
            let progress = step as f64 / count as f64;
            let loss = 1.4 + 3.0 * (-9.0 * progress).exp() + 0.25 * (noise - 0.5);
            let lr = 1e-3 * (step as f64 / 50.0).min(1.0) * (0.55 + 0.45 * (std::f64::consts::PI * progress).cos());
            let (grad_norm, tokens_per_second) =
                (0.5 + 0.3 * noise + (-20.0 * progress).exp(), 10_400.0 + 600.0 * noise);
            records.push(
                StepRecord { step, loss, lr, grad_norm, tokens_per_second, mfu: 0.7, beside: Default::default() }
                    .into(),
            );
            if step % (count / 8).max(1) == 0 {
                records.push(EvaluationRecord::new(step, 1.5 + 3.0 * (-9.0 * progress).exp()).into());
            }
        }
        records
    }

    #[test]
    fn a_run_of_any_length_is_drawn_and_the_file_does_not_grow_with_it() {
        for count in [0, 1, 2, 3, 50, 1000] {
            let svg = loss_svg(&run(count)).unwrap();
            assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{count} steps");
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{count} steps");
        }
        let (short, long) = (loss_svg(&run(2000)).unwrap().len(), loss_svg(&run(200_000)).unwrap().len());
        assert!(long < 2 * short && long < 200_000, "{short} and {long} bytes");
    }

    #[test]
    fn the_legend_names_only_what_is_there() {
        let with = loss_svg(&run(100)).unwrap();
        assert!(with.contains("validation") && with.contains("training, smoothed") && with.contains("learning rate"));
        let steps_only: Vec<Record> = run(100).into_iter().filter(|r| matches!(r, Record::Step(_))).collect();
        assert!(!loss_svg(&steps_only).unwrap().contains("validation"));
    }

    #[test]
    fn nothing_outside_the_drawing_is_needed() {
        let svg = loss_svg(&run(100)).unwrap();
        assert!(!svg.contains("href") && !svg.contains("url(") && !svg.contains("@import"));
    }

    #[test]
    fn values_that_are_not_finite_or_all_alike_or_extreme_are_drawn() {
        let mut records = run(300);
        for (index, value) in [(10, f64::NAN), (20, f64::INFINITY), (30, 1e300), (40, -1e300)] {
            let Record::Step(step) = &mut records[index] else { continue };
            (step.loss, step.grad_norm, step.lr, step.tokens_per_second) = (value, value, value, value);
        }
        for draw in [loss_svg, grad_norm_svg, throughput_svg] {
            assert!(draw(&records).unwrap().contains("<svg"));
        }
        for alike in [0.0, 5.0, 1e-30, -3.0] {
            let steps = (1..5).map(|step| {
                let (loss, lr, grad_norm, tokens_per_second) = (alike, alike, alike, alike);
                StepRecord { step, loss, lr, grad_norm, tokens_per_second, mfu: 0.0, beside: Default::default() }.into()
            });
            assert!(loss_svg(&steps.collect::<Vec<Record>>()).unwrap().contains("<svg"), "{alike}");
        }
    }

    #[test]
    fn one_spike_does_not_flatten_the_curve() {
        let mut records = run(1000);
        if let Record::Step(step) = &mut records[500] {
            step.loss = 1000.0;
        }
        assert!(vertical_range(&loss_panel(&records)).end < 5.0);
    }

    #[test]
    fn smoothing_keeps_a_constant_and_starts_at_the_first_value() {
        let constant: Vec<_> = (0..500).map(|step| (step as f64, 2.5)).collect();
        assert!(smooth(&constant).iter().all(|point| (point.1 - 2.5).abs() < 1e-12));
        let falling: Vec<_> = (0..500).map(|step| (step as f64, 100.0 - step as f64)).collect();
        assert!((smooth(&falling)[0].1 - 100.0).abs() < 1e-12);
    }

    #[test]
    fn labels_are_short() {
        let steps = [(0.0, "0"), (250.0, "250"), (12_500.0, "12.5k"), (3e6, "3M")];
        steps.iter().for_each(|(step, label)| assert_eq!(step_label(*step), *label));
        let values = [
            (2.5, 3.0, "2.5"),
            (3.0, 3.0, "3"),
            (1e-3, 1e-3, "1e-3"),
            (2.5e-4, 1e-3, "2.5e-4"),
            (-1e-19, 1e-3, "0"),
            (40.0, 40.0, "40"),
        ];
        values.iter().for_each(|(value, range, label)| assert_eq!(value_label(*value, *range), *label));
    }

    #[test]
    fn a_file_is_written_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("loss.svg");
        write_loss_svg(&path, &run(10)).unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().starts_with("<svg"));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        let message = write_loss_svg(Path::new("no/such/loss.svg"), &[]).unwrap_err().to_string();
        assert!(message.starts_with("cannot write no/such/loss.svg: "), "{message}");
    }
}
