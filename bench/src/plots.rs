//! Plots of what a request costs the server, as SVG.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::plan::Curve;
use crate::report::Findings;

const SIZE: (u32, u32) = (760, 420);

/// A line of a plot: its label, and its points.
pub(crate) type Line = (String, Vec<(f64, f64)>);

/// What was measured of a curve; lines with fewer than two points are left out.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
pub(crate) fn lines(curve: &Curve, findings: Findings<'_>) -> Vec<Line> {
    let lines = curve.lines.iter().map(|(label, system, points)| {
        let points = points.iter().filter_map(|(place, task)| {
            let cpu =
                findings.median(&task.to_string(), system, |figures| figures.server_cpu_us)?;
            Some((*place as f64, cpu))
        });
        (label.clone(), points.collect::<Vec<_>>())
    });
    lines.filter(|(_, points)| points.len() > 1).collect()
}

/// Draws them.
pub(crate) fn draw(curve: &Curve, lines: &[Line], path: &Path) -> Result<()> {
    let failed = |error: &dyn std::error::Error| anyhow!("{}: {error}", path.display());
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE).map_err(|error| failed(&error))?;
    let points = || lines.iter().flat_map(|(_, points)| points);
    let bounds = |of: fn(&(f64, f64)) -> f64| {
        let low = points().map(of).fold(f64::INFINITY, f64::min);
        let high = points().map(of).fold(0.0, f64::max);
        (low, high)
    };
    let (left, right) = bounds(|point| point.0);
    let (low, high) = bounds(|point| point.1);
    let mut chart = ChartBuilder::on(&root)
        .caption(curve.title, ("sans-serif", 18))
        .margin(12)
        .margin_right(44)
        .x_label_area_size(42)
        .y_label_area_size(64)
        .build_cartesian_2d(
            (left..right * 1.1).log_scale(),
            (low.max(0.01) / 1.5..high * 1.5).log_scale(),
        )
        .map_err(|error| failed(&error))?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .y_labels(6)
        .x_desc(curve.along)
        .y_desc("server CPU, us")
        .x_label_formatter(&|value| plain(*value))
        .y_label_formatter(&|value| plain(*value))
        .draw()
        .map_err(|error| failed(&error))?;
    for (number, (label, points)) in lines.iter().enumerate() {
        let color = Palette99::pick(number).to_rgba();
        let series = LineSeries::new(points.iter().copied(), color.stroke_width(2));
        let drawn = chart.draw_series(series).map_err(|error| failed(&error))?;
        drawn.label(label.clone()).legend(move |(x, y)| {
            PathElement::new(vec![(x, y), (x + 18, y)], color.stroke_width(2))
        });
        let dots = points
            .iter()
            .map(|point| Circle::new(*point, 3, color.filled()));
        chart.draw_series(dots).map_err(|error| failed(&error))?;
    }
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.4))
        .position(SeriesLabelPosition::UpperLeft)
        .draw()
        .map_err(|error| failed(&error))?;
    root.present().map_err(|error| failed(&error))
}

/// A number without needless digits.
fn plain(value: f64) -> String {
    if value >= 10.0 {
        format!("{value:.0}")
    } else {
        format!("{value}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::cost_curves;

    #[test]
    fn a_plot_is_drawn_of_what_there_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plot.svg");
        let curve = cost_curves().remove(0);
        let lines = vec![("get os".to_owned(), vec![(1e4, 3.0), (1e6, 5.0)])];
        draw(&curve, &lines, &path).unwrap();
        let drawn = std::fs::read_to_string(&path).unwrap();
        assert!(
            drawn.contains("<polyline") && drawn.contains("get os"),
            "{drawn}"
        );
    }
}
