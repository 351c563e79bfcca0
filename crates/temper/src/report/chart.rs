//! Plots as inline SVG. Colours are sentinels that the style sheet maps to the light or the dark theme.

use plotters::coord::Shift;
use plotters::prelude::*;

use super::html::{escape, number};

/// One line of a plot. Points that are not finite break it.
#[derive(Debug, Clone)]
pub(super) struct Series {
    /// Name in the legend.
    pub(super) name: String,
    /// (x, y), x ascending.
    pub(super) points: Vec<(f64, f64)>,
    /// Interval of y at each point, for plots of measurements.
    pub(super) whiskers: Vec<(f64, f64)>,
}

impl Series {
    /// A line without whiskers.
    pub(super) fn line(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.into(), points, whiskers: vec![] }
    }

    fn finite(&self) -> impl Iterator<Item = (f64, f64)> {
        self.points.iter().copied().filter(|(_, y)| y.is_finite())
    }

    /// The line with every number that cannot be placed on an axis turned into a gap.
    fn plottable(&self) -> Self {
        let point = |(x, y): &(f64, f64)| (*x, axis_number(*y));
        let whisker = |(low, high): &(f64, f64)| (axis_number(*low), axis_number(*high));
        Self {
            name: self.name.clone(),
            points: self.points.iter().map(point).collect(),
            whiskers: self.whiskers.iter().map(whisker).collect(),
        }
    }
}

/// What the horizontal axis counts.
#[derive(Debug, Clone)]
pub(super) enum Axis {
    /// Optimiser steps.
    Steps,
    /// Named places 0, 1, 2, ..
    Names(Vec<String>),
}

/// One figure.
#[derive(Debug)]
pub(super) struct Chart {
    /// Heading.
    pub(super) title: String,
    /// What is plotted, in a sentence.
    pub(super) caption: String,
    /// Horizontal axis.
    pub(super) axis: Axis,
    /// Lines, at most [`COLOURS`] of them.
    pub(super) series: Vec<Series>,
    /// Vertical range to show at least.
    pub(super) include: Option<(f64, f64)>,
    /// Whether y is a share, to be labelled in percent.
    pub(super) percent: bool,
    /// Whether the steps are noisy, so that a moving average is drawn over them when there are many.
    pub(super) noisy: bool,
}

/// Lines that one plot can tell apart.
pub(super) const COLOURS: usize = 6;

// Sentinels: style.css knows these six colours, the ink and the grid by their hexadecimal spelling.
const PALETTE: [RGBColor; COLOURS] = [
    RGBColor(0x2A, 0x6F, 0xDB),
    RGBColor(0xD9, 0x73, 0x0D),
    RGBColor(0x2F, 0x9E, 0x64),
    RGBColor(0xA3, 0x47, 0xBA),
    RGBColor(0xC4, 0x31, 0x4B),
    RGBColor(0x5B, 0x6B, 0x7B),
];
const INK: RGBColor = RGBColor(0x11, 0x11, 0x11);
const GRID: RGBColor = RGBColor(0xDD, 0xDD, 0xDD);

// The backend has whole-pixel coordinates: draw large and let the page scale down.
const SIZE: (u32, u32) = (900, 480);
const FONT: u32 = 36;
const MOST_POINTS: usize = 600;

impl Chart {
    /// The figure, or nothing when no point is finite.
    pub(super) fn figure(mut self) -> String {
        self.series = self.series.iter().map(Series::plottable).filter(|s| s.finite().next().is_some()).collect();
        let Some(svg) = self.svg() else { return String::new() };
        let latest = match self.series.as_slice() {
            [one] => one
                .finite()
                .last()
                .map(|(_, y)| format!("<span class=\"latest\"><small>last</small> {}</span>", self.label(y))),
            _ => None,
        };
        format!(
            "<figure>\n<figcaption><h4>{}</h4>{}<p>{}</p>{}</figcaption>\n{svg}</figure>\n",
            escape(&self.title),
            latest.unwrap_or_default(),
            escape(&self.caption),
            self.legend(),
        )
    }

    fn label(&self, y: f64) -> String {
        if self.percent { format!("{}%", number(y * 100.0)) } else { number(y) }
    }

    fn legend(&self) -> String {
        if self.series.len() < 2 {
            return String::new();
        }
        let entry = |(i, s): (usize, &Series)| format!("<li><i class=\"swatch s{i}\"></i>{}</li>", escape(&s.name));
        format!("<ul class=\"legend\">{}</ul>", self.series.iter().enumerate().map(entry).collect::<String>())
    }

    fn svg(&self) -> Option<String> {
        let (x_range, y_range) = (self.x_range()?, self.y_range()?);
        let mut svg = String::new();
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        self.draw(&area, x_range, y_range).ok()?;
        area.present().ok()?;
        drop(area);
        let opening = format!("<svg role=\"img\" aria-label=\"{}\" ", escape(&self.description()));
        Some(svg.replacen("<svg ", &opening, 1))
    }

    /// The plot in words, for those who do not see it.
    fn description(&self) -> String {
        let line = |s: &Series| {
            let (first, last) = (s.finite().next()?, s.finite().last()?);
            let low = s.finite().map(|p| p.1).fold(f64::INFINITY, f64::min);
            let high = s.finite().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
            let [first, last, low, high] = [first.1, last.1, low, high].map(|y| self.label(y));
            Some(format!("{}: from {first} to {last}, lowest {low}, highest {high}", s.name))
        };
        format!("{}. {}", self.title, self.series.iter().filter_map(line).collect::<Vec<_>>().join("; "))
    }

    fn x_range(&self) -> Option<(f64, f64)> {
        if let Axis::Names(names) = &self.axis {
            return Some((-0.3, names.len() as f64 - 0.7));
        }
        let (low, high) = bounds(self.series.iter().flat_map(Series::finite).map(|p| p.0))?;
        Some(if low == high { widened(low, high, 1.0) } else { widened(low, high, 0.0) })
    }

    fn y_range(&self) -> Option<(f64, f64)> {
        let whiskers = self.series.iter().flat_map(|s| &s.whiskers).flat_map(|w| [w.0, w.1]).filter(|y| y.is_finite());
        let (low, high) = bounds(self.series.iter().flat_map(Series::finite).map(|p| p.1).chain(whiskers))?;
        let (low, high) = self.include.map_or((low, high), |(a, b)| (low.min(a), high.max(b)));
        if low == 0.0 && high == 0.0 {
            return Some((0.0, 1.0));
        }
        let room = if high > low { (high - low) * 0.06 } else { high.abs() * 0.1 };
        // Shares and counts do not dip below zero just to make room.
        let floor = if low >= 0.0 && low < room * 4.0 { 0.0 } else { low - room };
        Some(widened(floor, high + room, 0.0))
    }

    fn draw(
        &self,
        area: &DrawingArea<SVGBackend, Shift>,
        x: (f64, f64),
        y: (f64, f64),
    ) -> Result<(), Box<dyn std::error::Error>> {
        let mut plot = ChartBuilder::on(area)
            .margin(12)
            .margin_top(24)
            .margin_right(36)
            .x_label_area_size(54)
            .y_label_area_size(118)
            .build_cartesian_2d(x.0..x.1, y.0..y.1)?;
        let text = ("system-ui, sans-serif", FONT).into_font().color(&INK);
        let x_label = |x: &f64| self.x_label(*x);
        let y_label = |y: &f64| if *y == 0.0 || y.abs() < 1e-12 { self.label(0.0) } else { self.label(*y) };
        let ticks = match &self.axis {
            Axis::Steps => 6,
            Axis::Names(names) => 2 * names.len() + 1,
        };
        plot.configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID.stroke_width(2))
            .axis_style(GRID.stroke_width(2))
            .x_labels(ticks)
            .y_labels(5)
            .x_label_formatter(&x_label)
            .y_label_formatter(&y_label)
            .label_style(text)
            .draw()?;
        for (i, series) in self.series.iter().enumerate().take(COLOURS) {
            for element in elements(series, i, self.series.len(), self.noisy) {
                match element {
                    Element::Line(points, style) => drop(plot.draw_series(LineSeries::new(points, style))?),
                    Element::Dot(point, style) => drop(plot.draw_series([Circle::new(point, 7, style)])?),
                }
            }
        }
        Ok(())
    }

    fn x_label(&self, x: f64) -> String {
        let whole = (x - x.round()).abs() < 1e-6;
        match &self.axis {
            _ if !whole => String::new(),
            Axis::Steps => super::html::thousands(x.round()),
            Axis::Names(names) => names.get(x.round() as usize).filter(|_| x > -0.5).cloned().unwrap_or_default(),
        }
    }
}

enum Element {
    Line(Vec<(f64, f64)>, ShapeStyle),
    Dot((f64, f64), ShapeStyle),
}

/// What is drawn for a line: the steps faint and their moving average strong when there are many, dots where points stand
/// alone, whiskers where there are any.
fn elements(series: &Series, index: usize, of: usize, noisy: bool) -> Vec<Element> {
    let colour = PALETTE[index];
    // Whiskers of several lines at the same place stand side by side.
    let shift = if series.whiskers.is_empty() { 0.0 } else { (index as f64 - (of as f64 - 1.0) / 2.0) * 0.035 };
    let points: Vec<(f64, f64)> = series.points.iter().map(|(x, y)| (x + shift, *y)).collect();
    let mut elements = vec![];
    for (point, (low, high)) in points.iter().zip(&series.whiskers).filter(|(p, _)| p.1.is_finite()) {
        if low.is_finite() && high.is_finite() {
            elements.push(Element::Line(vec![(point.0, *low), (point.0, *high)], colour.mix(0.55).stroke_width(4)));
        }
    }
    let smooth = if noisy { moving_average(&points) } else { None };
    let strong = smooth.as_ref().unwrap_or(&points);
    if smooth.is_some() {
        elements.extend(unbroken(&points).map(|run| Element::Line(run, colour.mix(0.42).stroke_width(2))));
    }
    for run in unbroken(strong) {
        if run.len() == 1 || !series.whiskers.is_empty() || points.len() <= 4 {
            elements.extend(run.iter().map(|p| Element::Dot(*p, colour.filled())));
        }
        elements.push(Element::Line(run, colour.stroke_width(4)));
    }
    elements
}

/// Steps over which the thick lines are averaged; `None` when there are too few to need it.
pub(super) fn window(n: usize) -> Option<usize> {
    (n >= 30).then(|| (n / 20).clamp(3, 51) | 1)
}

/// Centred moving average over finite neighbours.
fn moving_average(points: &[(f64, f64)]) -> Option<Vec<(f64, f64)>> {
    let half = window(points.len())? / 2;
    let average = |i: usize| {
        let near = &points[i.saturating_sub(half)..(i + half + 1).min(points.len())];
        let (sum, n) = near.iter().filter(|p| p.1.is_finite()).fold((0.0, 0), |(s, n), p| (s + p.1, n + 1));
        (points[i].0, if points[i].1.is_finite() { sum / f64::from(n) } else { f64::NAN })
    };
    Some((0..points.len()).map(average).collect())
}

/// Runs of finite points, thinned to what a plot can show.
fn unbroken(points: &[(f64, f64)]) -> impl Iterator<Item = Vec<(f64, f64)>> {
    let every = points.len().div_ceil(MOST_POINTS).max(1);
    points.split(|p| !p.1.is_finite()).filter(|run| !run.is_empty()).map(move |run| thin(run, every))
}

fn thin(run: &[(f64, f64)], every: usize) -> Vec<(f64, f64)> {
    let mean = |chunk: &[(f64, f64)]| {
        let n = chunk.len() as f64;
        (chunk.iter().map(|p| p.0).sum::<f64>() / n, chunk.iter().map(|p| p.1).sum::<f64>() / n)
    };
    if every == 1 { run.to_vec() } else { run.chunks(every).map(mean).collect() }
}

/// Numbers beyond 1e30 either way are gaps and those below 1e-30 are 0: the labels of such axes do not end.
fn axis_number(y: f64) -> f64 {
    match y.abs() {
        size if size < 1e-30 => 0.0,
        size if size < 1e30 => y,
        _ => f64::NAN,
    }
}

/// A range that is wide enough, for numbers of its size, to be told apart.
fn widened(low: f64, high: f64, by: f64) -> (f64, f64) {
    let least = low.abs().max(high.abs()) * 1e-6;
    let by = if high - low < least { by.max(least) } else { by };
    (low - by, high + by)
}

fn bounds(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |b, v| Some(b.map_or((v, v), |(low, high): (f64, f64)| (low.min(v), high.max(v)))))
}
