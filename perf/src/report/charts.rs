//! Plots as SVG text. What is black in them follows the colour of the page's text.

use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::error::PerfError;
use crate::measure::Spread;

/// Width of each plot, in the units of its own coordinates.
const WIDTH: u32 = 960;
/// Height of those whose height does not follow from their rows.
const HEIGHT: u32 = 400;
/// Height of a row of bars.
const ROW: u32 = 26;
/// Height of a row of a legend.
const LEGEND_ROW: u32 = 24;
const FONT: (&str, u32) = ("sans-serif", 14);

/// Colours that people with any colour vision tell apart (Okabe and Ito), without the black.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(86, 180, 233),
    RGBColor(204, 121, 167),
    RGBColor(150, 140, 0),
];

fn colour(number: usize) -> RGBColor {
    COLOURS[number % COLOURS.len()]
}

/// A line of a plot.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// What it shows.
    pub name: String,
    /// Its points, by x, each with the range that it was seen in.
    pub points: Vec<(f64, Spread)>,
}

/// A scale.
#[derive(Debug, Clone)]
pub struct Axis {
    /// What it shows, and in which unit.
    pub label: String,
    /// How a value is written.
    pub format: fn(f64) -> String,
}

/// One horizontal bar, of one part or several.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    /// What it shows.
    pub label: String,
    /// Values of the parts, in the order of their names.
    pub parts: Vec<f64>,
    /// The range of the whole, where it is known.
    pub range: Option<(f64, f64)>,
}

fn failed(error: impl std::fmt::Display) -> PerfError {
    PerfError::Missed(format!("cannot draw a plot: {error}"))
}

type Canvas<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Lines over a logarithmic x axis; the y axis is logarithmic where `log_y`.
///
/// # Errors
/// [`PerfError::Missed`] when there is nothing that could be drawn.
pub fn lines(x: &Axis, y: &Axis, log_y: bool, lines: &[Line]) -> Result<String, PerfError> {
    let points = || lines.iter().flat_map(|line| &line.points);
    let positive = |value: f64| value.is_finite() && value > 0.0;
    if !points().any(|(x, y)| positive(*x) && positive(y.median)) {
        return Err(failed("none of its values is above zero"));
    }
    let least = |values: &mut dyn Iterator<Item = f64>| values.fold(f64::MAX, f64::min);
    let most = |values: &mut dyn Iterator<Item = f64>| values.fold(f64::MIN, f64::max);
    let (x0, x1) = (least(&mut points().map(|p| p.0)), most(&mut points().map(|p| p.0)));
    let (y0, y1) = (least(&mut points().map(|p| p.1.least)), most(&mut points().map(|p| p.1.most)));
    let xs = (x0 * 0.9..x1.max(x0 * 1.01) * 1.1).log_scale();
    let mut svg = String::new();
    {
        let names: Vec<_> = lines.iter().map(|line| line.name.clone()).collect();
        let size = (WIDTH, HEIGHT + legend_height(&names));
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let (legend, area) = root.split_vertically(legend_height(&names));
        draw_legend(&legend, &names)?;
        if log_y {
            draw_lines(&area, xs, (y0.max(1e-3) * 0.8..y1 * 1.25).log_scale(), x, y, lines)?;
        } else {
            draw_lines(&area, xs, 0.0..y1 * 1.08, x, y, lines)?;
        }
        root.present().map_err(failed)?;
    }
    Ok(svg)
}

fn draw_lines<X, Y>(
    root: &Canvas<'_>,
    xs: X,
    ys: Y,
    x: &Axis,
    y: &Axis,
    lines: &[Line],
) -> Result<(), PerfError>
where
    X: AsRangedCoord<Value = f64>,
    Y: AsRangedCoord<Value = f64>,
    X::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let mut chart = ChartBuilder::on(root)
        .margin(12)
        .x_label_area_size(46)
        .y_label_area_size(74)
        .build_cartesian_2d(xs, ys)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.12))
        .label_style(FONT)
        .axis_desc_style(FONT)
        .x_desc(&x.label)
        .y_desc(&y.label)
        .x_label_formatter(&|value| (x.format)(*value))
        .y_label_formatter(&|value| (y.format)(*value))
        .draw()
        .map_err(failed)?;
    for (number, line) in lines.iter().enumerate() {
        let style = colour(number).stroke_width(2);
        let values = || line.points.iter().map(|(x, y)| (*x, y.median));
        chart.draw_series(LineSeries::new(values(), style)).map_err(failed)?;
        let marks = values().map(|at| Circle::new(at, 3, colour(number).filled()));
        chart.draw_series(marks).map_err(failed)?;
        let ranges = line.points.iter().map(|(x, y)| {
            PathElement::new([(*x, y.least), (*x, y.most)], colour(number).mix(0.5).stroke_width(1))
        });
        chart.draw_series(ranges).map_err(failed)?;
    }
    Ok(())
}

/// Horizontal bars, each with its value written behind it. With several part names the parts of a
/// bar lie one behind the other, and a legend is drawn.
///
/// # Errors
/// [`PerfError::Missed`] when there are no bars.
pub fn bars(unit: &Axis, part_names: &[String], bars: &[Bar]) -> Result<String, PerfError> {
    let whole = |bar: &Bar| bar.parts.iter().sum::<f64>();
    let ends = bars.iter().map(|bar| bar.range.map_or(0.0, |range| range.1).max(whole(bar)));
    let most = ends.fold(0.0, f64::max);
    if !(most > 0.0 && most.is_finite()) {
        return Err(failed("none of its bars is longer than nothing"));
    }
    let rows = bars.len() as u32;
    let height = rows * ROW + 80 + legend_height(part_names);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        let (legend, area) = root.split_vertically(legend_height(part_names));
        draw_legend(&legend, part_names)?;
        draw_bars(&root, &area, unit, bars, most)?;
        root.present().map_err(failed)?;
    }
    Ok(svg)
}

/// Where each name of a legend stands: from the left, and in which row.
fn legend_places(names: &[String]) -> Vec<(i32, i32)> {
    let (mut x, mut row) = (12, 0);
    let mut places = Vec::new();
    for name in names {
        // Some 7 units a letter, and the square.
        let width = 32 + 7 * name.chars().count() as i32;
        if x + width > WIDTH as i32 && x > 12 {
            (x, row) = (12, row + 1);
        }
        places.push((x, row));
        x += width;
    }
    places
}

/// One name needs no legend.
fn legend_height(names: &[String]) -> u32 {
    if names.len() < 2 {
        return 0;
    }
    legend_places(names).last().map_or(0, |(_, row)| (*row as u32 + 1) * LEGEND_ROW)
}

fn draw_legend(area: &Canvas<'_>, names: &[String]) -> Result<(), PerfError> {
    if names.len() < 2 {
        return Ok(());
    }
    for (number, (name, (x, row))) in names.iter().zip(legend_places(names)).enumerate() {
        let y = row * LEGEND_ROW as i32 + 6;
        let square = Rectangle::new([(x, y), (x + 12, y + 12)], colour(number).filled());
        area.draw(&square).map_err(failed)?;
        let style = TextStyle::from(FONT).pos(Pos::new(HPos::Left, VPos::Center));
        area.draw(&Text::new(name.clone(), (x + 17, y + 6), style)).map_err(failed)?;
    }
    Ok(())
}

/// Places in a chart are told as places in `root`, which its `area` is a part of.
fn draw_bars(
    root: &Canvas<'_>,
    area: &Canvas<'_>,
    unit: &Axis,
    bars: &[Bar],
    most: f64,
) -> Result<(), PerfError> {
    let rows = bars.len() as f64;
    let longest = bars.iter().map(|bar| bar.label.chars().count()).max().unwrap_or(0) as u32;
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .x_label_area_size(46)
        .y_label_area_size((longest * 7 + 16).min(WIDTH / 2))
        .build_cartesian_2d(0.0..most * 1.15, 0.0..rows)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .y_labels(0)
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.12))
        .label_style(FONT)
        .axis_desc_style(FONT)
        .x_desc(&unit.label)
        .x_label_formatter(&|value| (unit.format)(*value))
        .draw()
        .map_err(failed)?;
    let beside = |side| TextStyle::from(FONT).pos(Pos::new(side, VPos::Center));
    let (left, right) = (beside(HPos::Right), beside(HPos::Left));
    for (number, bar) in bars.iter().enumerate() {
        // The first one on top.
        let bottom = rows - 1.0 - number as f64;
        let mut from = 0.0;
        for (part, value) in bar.parts.iter().enumerate() {
            let corners = [(from, bottom + 0.15), (from + value, bottom + 0.85)];
            let shape = Rectangle::new(corners, colour(part).filled());
            chart.draw_series([shape]).map_err(failed)?;
            from += value;
        }
        if let Some((least, most)) = bar.range {
            let whisker = PathElement::new([(least, bottom + 0.5), (most, bottom + 0.5)], BLACK);
            chart.draw_series([whisker]).map_err(failed)?;
        }
        let end = from.max(bar.range.map_or(0.0, |range| range.1));
        let at = (chart.as_coord_spec().clone(), end);
        let (x, y) = at.0.translate(&(at.1, bottom + 0.5));
        let value = Text::new((unit.format)(from), (x + 6, y), right.clone());
        root.draw(&value).map_err(failed)?;
        let (x, y) = at.0.translate(&(0.0, bottom + 0.5));
        let label = Text::new(bar.label.clone(), (x - 8, y), left.clone());
        root.draw(&label).map_err(failed)?;
    }
    Ok(())
}
