//! Rooflines as SVG: FLOP/s over FLOPs per byte of DRAM traffic, both logarithmic.
//!
//! The roofs are what a GPU can do at an intensity; each launch is a point at what it can do itself. Where a point lies
//! below the roof, something that the roof does not show (shared memory, issue slots, idle multiprocessors) holds it down.

use super::roofline::Roofline;
use plotters::prelude::*;

const SIZE: (u32, u32) = (960, 560);
const INK: RGBColor = RGBColor(0x80, 0x80, 0x80);
const ROOF: RGBColor = RGBColor(0x3B, 0x82, 0xD6);
const POINT: RGBColor = RGBColor(0xE0, 0x7B, 0x22);

/// Draws launches on one GPU, named. Those without floating-point work or DRAM traffic have no place in the drawing and
/// are named below the title.
///
/// # Errors
/// The drawing library's own, as text.
pub fn roofline_svg(launches: &[(String, Roofline)]) -> Result<String, String> {
    let Some((_, first)) = launches.first() else { return Err("no launch to draw".into()) };
    let gpu = first.gpu;
    let mut points = Vec::new();
    let mut absent = Vec::new();
    for (name, roofline) in launches {
        match roofline.work.intensity() {
            Some(intensity) if intensity > 0.0 => {
                points.push((name, intensity.log10(), roofline.attainable_flops_per_second().log10()));
            }
            _ => absent.push(name.as_str()),
        }
    }
    let bandwidth = gpu.dram_bytes_per_second.log10();
    let (vector, tensor) = (gpu.f32_flops_per_second.log10(), gpu.tensor_flops_per_second.log10());
    // Whole decades around the ridges and the points.
    let left = points.iter().map(|point| point.1).fold(-1.0, f64::min).floor();
    let right = points.iter().map(|point| point.1 + 0.5).fold(tensor - bandwidth + 1.0, f64::max).ceil();
    let bottom = points.iter().map(|point| point.2 - 0.3).fold(bandwidth + left, f64::min).floor();
    let top = (tensor + 0.3).ceil();

    let mut title = format!("roofline of {}", gpu.name);
    if !absent.is_empty() {
        title.push_str(&format!(" (not drawn, no FLOPs or no traffic: {})", absent.join(", ")));
    }
    let mut svg = String::new();
    let draw = || -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let font = |size: i32| ("system-ui, sans-serif", size).into_font().color(&INK);
        let mut chart = ChartBuilder::on(&area)
            .caption(title, font(18))
            .margin(10)
            .margin_right(30)
            .x_label_area_size(44)
            .y_label_area_size(80)
            .build_cartesian_2d(left..right, bottom..top)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(INK.mix(0.2))
            .axis_style(INK)
            .x_labels((right - left) as usize + 1)
            .y_labels((top - bottom) as usize + 1)
            .x_label_formatter(&|x| intensity_label(*x))
            .y_label_formatter(&|y| rate_label(*y))
            .x_desc("FLOPs per byte of DRAM traffic")
            .y_desc("FLOP/s")
            .label_style(font(14))
            .draw()?;
        let style = ROOF.stroke_width(2);
        for (roof, name) in [(vector, "f32"), (tensor, "tensor cores, bf16")] {
            let ridge = roof - bandwidth;
            let line = [(left, bandwidth + left), (ridge, roof), (right, roof)];
            chart.draw_series(LineSeries::new(line, style))?;
            let label = format!("{name} {}", rate_label(roof));
            let place = (right - 0.28 * (right - left), roof + 0.04 * (top - bottom));
            chart.draw_series(std::iter::once(Text::new(label, place, font(14).color(&ROOF))))?;
        }
        for (name, x, y) in &points {
            let here = (*x, y.max(bottom));
            chart.draw_series(std::iter::once(Circle::new(here, 5, POINT.filled())))?;
            let label = EmptyElement::at(here) + Text::new((*name).clone(), (9, -6), font(14).color(&POINT));
            chart.draw_series(std::iter::once(label))?;
        }
        area.present()
    };
    draw().map_err(|error| format!("cannot draw the roofline: {error}"))?;
    Ok(svg)
}

/// `0.1`, `100`, `10k` for whole decades, nothing between them.
fn intensity_label(log: f64) -> String {
    let decade = log.round();
    if (log - decade).abs() > 1e-6 {
        return String::new();
    }
    match decade {
        4.0.. => format!("{}k", 10f64.powf(decade - 3.0)),
        _ => format!("{}", 10f64.powf(decade)),
    }
}

/// `19.5 TFLOP/s`.
fn rate_label(log: f64) -> String {
    let rate = 10f64.powf(log);
    let (scale, unit) = match rate {
        1e15.. => (1e15, "P"),
        1e12.. => (1e12, "T"),
        1e9.. => (1e9, "G"),
        _ => (1e6, "M"),
    };
    let text = format!("{:.1}", rate / scale);
    format!("{} {unit}FLOP/s", text.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::super::gpus::GPUS;
    use super::super::roofline::Work;
    use super::*;

    fn launch(name: &str, flops: u64, bytes: u64) -> (String, Roofline) {
        let work = Work {
            vector_flops: flops,
            f32_instructions: flops / 64,
            dram_bytes: bytes,
            blocks: 1000,
            ..Work::default()
        };
        (name.into(), Roofline::new(&GPUS[0], work))
    }

    #[test]
    fn points_are_drawn_and_those_without_a_place_are_named() {
        let svg = roofline_svg(&[launch("gemm", 1 << 40, 1 << 30), launch("copy", 0, 1 << 30)]).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        assert_eq!(svg.matches("<circle").count(), 1);
        for part in ["gemm", "not drawn", "copy", "19.5 TFLOP/s", "312 TFLOP/s"] {
            assert!(svg.contains(part), "{part}");
        }
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn extreme_launches_and_names_are_drawn_too() {
        for (flops, bytes) in [(0, 0), (1, u64::MAX), (u64::MAX, 1), (64, 32)] {
            let svg = roofline_svg(&[launch("<a & b>", flops, bytes)]).unwrap();
            assert!(!svg.contains("NaN") && !svg.contains("<a"), "{flops} {bytes}");
        }
        assert!(roofline_svg(&[]).is_err());
    }
}
