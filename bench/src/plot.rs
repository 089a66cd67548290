//! Plots of figures, as SVG: one for each name. Lines over the number of flows where there are several, else bars; whiskers
//! go from the least run to the largest.

use std::path::{Path, PathBuf};

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::figure::Figure;
use crate::machine::Machine;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Failure = Box<dyn std::error::Error>;

const WIDTH: u32 = 860;
/// Of a plot with lines.
const HEIGHT: u32 = 480;
/// Of a bar with what is around it.
const BAR: u32 = 34;
/// Of caption, axis and foot around bars.
const AROUND_BARS: u32 = 150;
/// So many different numbers of flows are an axis.
const FEWEST_FOR_LINES: usize = 3;
const OURS: RGBColor = RGBColor(0, 92, 175);
const OTHERS: RGBColor = RGBColor(138, 148, 158);
const LINES: [RGBColor; 6] = [
    OURS,
    RGBColor(203, 84, 20),
    RGBColor(46, 125, 80),
    RGBColor(126, 87, 160),
    RGBColor(160, 120, 20),
    RGBColor(70, 80, 90),
];
const FOOT: RGBColor = RGBColor(90, 90, 90);

/// Draws all figures, one file for each case and name; which files.
///
/// # Errors
/// If a file cannot be written.
pub fn draw_all(folder: &Path, machine: &Machine, figures: &[Figure]) -> Result<Vec<PathBuf>, String> {
    let mut done: Vec<PathBuf> = Vec::new();
    for first in figures {
        let path = folder.join(format!("{}-{}.svg", first.case, first.name));
        if done.contains(&path) {
            continue;
        }
        let alike: Vec<&Figure> = figures.iter().filter(|f| f.case == first.case && f.name == first.name).collect();
        draw(&path, machine, &alike).map_err(|error| format!("{}: {error}", path.display()))?;
        done.push(path);
    }
    Ok(done)
}

fn draw(path: &Path, machine: &Machine, figures: &[&Figure]) -> Result<(), Failure> {
    let mut flows: Vec<usize> = figures.iter().map(|f| f.flows).collect();
    flows.sort_unstable();
    flows.dedup();
    let lines = flows.len() >= FEWEST_FOR_LINES && flows[0] > 0;
    let height = if lines { HEIGHT } else { AROUND_BARS + BAR * figures.len() as u32 };
    let root = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let (body, foot) = root.split_vertically(height - 24);
    foot.draw(&Text::new(machine.line(), (12, 4), ("sans-serif", 11).into_font().color(&FOOT)))?;
    if lines {
        draw_lines(&body, figures, &flows)?
    } else {
        draw_bars(&body, figures, flows.len() > 1)?
    }
    root.present()?;
    Ok(())
}

/// Case and name, and how many runs.
fn caption(figures: &[&Figure]) -> String {
    let Figure { case, name, values, .. } = figures[0];
    let runs = values.len();
    format!("{case}: {} (median, least and largest of {runs} runs)", name.replace('_', " "))
}

fn axis(figures: &[&Figure]) -> String {
    let Figure { name, unit, .. } = figures[0];
    let name = name.replace('_', " ");
    if unit.is_empty() { name } else { format!("{name} [{unit}]") }
}

fn largest(figures: &[&Figure]) -> f64 {
    let most = figures.iter().map(|f| f.max()).fold(0.0, f64::max);
    if most > 0.0 { most } else { 1.0 }
}

fn draw_bars(area: &Area<'_>, figures: &[&Figure], name_flows: bool) -> Result<(), Failure> {
    let count = figures.len();
    let label = |figure: &Figure| match (figure.variant.as_str(), name_flows || figure.variant.is_empty()) {
        (variant, false) => variant.to_owned(),
        ("", true) if figure.flows == 0 => figure.case.to_owned(),
        ("", true) => format!("{} flows", thousands(figure.flows)),
        (variant, true) => format!("{variant}, {}", thousands(figure.flows)),
    };
    let most = largest(figures) * 1.15;
    let mut chart = ChartBuilder::on(area)
        .caption(caption(figures), ("sans-serif", 17))
        .margin(12)
        .x_label_area_size(48)
        .y_label_area_size(190)
        .build_cartesian_2d(0.0..most, 0.0..count as f64)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc(axis(figures))
        .x_label_formatter(&|value| short(*value))
        .y_labels(0)
        .label_style(("sans-serif", 13))
        .draw()?;
    let text = ("sans-serif", 13).into_font();
    let contested = figures.iter().any(|figure| figure.variant.starts_with("millrace"));
    // The first is on top.
    for (n, figure) in figures.iter().rev().enumerate() {
        let middle = n as f64 + 0.5;
        let ours = !contested || figure.variant.starts_with("millrace");
        let colour = if ours { OURS } else { OTHERS };
        let corners = [(0.0, middle - 0.3), (figure.median(), middle + 0.3)];
        chart.draw_series([Rectangle::new(corners, colour.mix(0.85).filled())])?;
        let ends = [(figure.min(), middle), (figure.max(), middle)];
        chart.draw_series([PathElement::new(ends, BLACK.stroke_width(1))])?;
        let value = Text::new(short(figure.median()), (6, -6), text.clone());
        chart.draw_series([EmptyElement::at((figure.max(), middle)) + value])?;
        let style = TextStyle::from(text.clone()).pos(Pos::new(HPos::Right, VPos::Center));
        let name = Text::new(label(figure), (-8, 0), style);
        chart.draw_series([EmptyElement::at((0.0, middle)) + name])?;
    }
    Ok(())
}

fn draw_lines(area: &Area<'_>, figures: &[&Figure], flows: &[usize]) -> Result<(), Failure> {
    let (first, last) = (flows[0] as f64, flows[flows.len() - 1] as f64);
    let mut chart = ChartBuilder::on(area)
        .caption(caption(figures), ("sans-serif", 17))
        .margin(12)
        .x_label_area_size(48)
        .y_label_area_size(70)
        .build_cartesian_2d((first / 1.5..last * 1.5).log_scale(), 0.0..largest(figures) * 1.15)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc("flows (logarithmic)")
        .y_desc(axis(figures))
        .x_label_formatter(&|flows| thousands(flows.round() as usize))
        .y_label_formatter(&|value| short(*value))
        .label_style(("sans-serif", 13))
        .draw()?;
    let mut variants: Vec<&str> = Vec::new();
    for figure in figures {
        if !variants.contains(&figure.variant.as_str()) {
            variants.push(&figure.variant);
        }
    }
    for (n, variant) in variants.iter().enumerate() {
        let colour = LINES[n % LINES.len()];
        let mut line: Vec<&Figure> = figures.iter().copied().filter(|f| f.variant == *variant).collect();
        line.sort_by_key(|figure| figure.flows);
        let points: Vec<(f64, f64)> = line.iter().map(|f| (f.flows as f64, f.median())).collect();
        let drawn = chart.draw_series([PathElement::new(points.clone(), colour.stroke_width(2))])?;
        if !variant.is_empty() {
            drawn.label(*variant).legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        }
        chart.draw_series(points.iter().map(|point| Circle::new(*point, 4, colour.filled())))?;
        chart.draw_series(line.iter().map(|f| {
            let x = f.flows as f64;
            PathElement::new([(x, f.min()), (x, f.max())], BLACK.stroke_width(1))
        }))?;
        chart.draw_series(line.iter().map(|f| {
            EmptyElement::at((f.flows as f64, f.max()))
                + Text::new(short(f.median()), (-8, -18), ("sans-serif", 13).into_font())
        }))?;
    }
    if variants.len() > 1 {
        let mut legend = chart.configure_series_labels();
        legend.position(SeriesLabelPosition::UpperLeft).background_style(WHITE.mix(0.8)).border_style(FOOT);
        legend.label_font(("sans-serif", 13)).draw()?;
    }
    Ok(())
}

/// A value with three digits, which is what runs agree on at best.
fn short(value: f64) -> String {
    let (scaled, suffix) = match value.abs() {
        size if size >= 1e6 => (value / 1e6, " M"),
        size if size >= 1e3 => (value / 1e3, " k"),
        _ => (value, ""),
    };
    let decimals = match scaled.abs() {
        size if size >= 99.95 => 0,
        size if size >= 9.995 => 1,
        _ => 2,
    };
    let text = format!("{scaled:.decimals$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{suffix}")
}

fn thousands(count: usize) -> String {
    match count {
        n if n >= 1_000_000 && n % 1_000_000 == 0 => format!("{} M", n / 1_000_000),
        n if n >= 1000 && n % 1000 == 0 => format!("{} k", n / 1000),
        n => n.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine { machine: "M, 2 cores".into(), kernel: "Linux 6".into(), pages: "4 KiB".into(), commit: "abc" }
    }

    #[test]
    fn each_name_is_one_plot_that_names_machine_variants_and_unit() {
        let folder = std::env::temp_dir().join(format!("millrace-plots-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let bars = |variant: &str| Figure::new("tcp", 64, "request_p99", "us", vec![3.0, 1.0, 2.0]).of(variant);
        let points = |flows| Figure::new("core", flows, "ns_per_packet", "ns", vec![40.0, 50.0]);
        let figures = [bars("millrace"), bars("haproxy"), points(1000), points(100_000), points(1_000_000)];
        let paths = draw_all(&folder, &machine(), &figures).unwrap();
        let text: Vec<String> = paths.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(paths.len(), 2);
        for needle in ["commit abc", "haproxy", "millrace", "[us]", "3 runs"] {
            assert!(text[0].contains(needle), "{needle}: {}", text[0]);
        }
        for needle in ["commit abc", "100 k", "[ns]", "flows (logarithmic)"] {
            assert!(text[1].contains(needle), "{needle}: {}", text[1]);
        }
    }

    #[test]
    fn values_have_three_digits() {
        let shown = [0.0, 0.5, 1.234, 12.0, 99.97, 123.4, 17_644.69, 1_000.0, 20_000_000.0].map(short);
        assert_eq!(shown, ["0", "0.5", "1.23", "12", "100", "123", "17.6 k", "1 k", "20 M"]);
    }

    #[test]
    fn a_figure_that_is_nothing_is_drawn_all_the_same() {
        let folder = std::env::temp_dir().join(format!("millrace-plots-zero-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let drawn = draw_all(&folder, &machine(), &[Figure::new("tcp", 0, "failed", "", vec![0.0])]);
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(drawn.map(|paths| paths.len()), Ok(1));
    }
}
