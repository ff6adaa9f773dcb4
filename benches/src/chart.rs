//! A bar chart as SVG, which browsers and README pages show directly. Each series has a panel with a scale of its own,
//! since a delivery of one message and one of sixteen differ by an order of magnitude.

use crate::table::figure;

/// A server's figures, one for each series.
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) values: Vec<Option<f64>>,
}

const LINE: usize = 22;
const NAMES: usize = 220;
const BARS: usize = 420;
const NUMBERS: usize = 70;
const COLOURS: [&str; 4] = ["#4878a8", "#d8843c", "#5a9a68", "#a86a9a"];

/// Draws bars from left to right. Shorter is better.
pub(crate) fn bars(title: &str, series: &[String], rows: &[Row]) -> String {
    let width = NAMES + BARS + NUMBERS;
    let panel = (rows.len() + 2) * LINE;
    let height = 2 * LINE + series.len() * panel;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n\
         <text x=\"8\" y=\"{LINE}\" font-size=\"15\" font-weight=\"bold\">{}</text>\n",
        escape(title)
    );
    for (number, name) in series.iter().enumerate() {
        let top = 2 * LINE + number * panel;
        let value = |row: &Row| row.values.get(number).copied().flatten();
        let most = rows.iter().filter_map(value).fold(f64::MIN_POSITIVE, f64::max);
        svg += &format!("<text x=\"8\" y=\"{}\" font-weight=\"bold\">{}</text>\n", top + LINE / 2, escape(name));
        for (line, row) in rows.iter().enumerate() {
            let Some(value) = value(row) else { continue };
            let y = top + LINE + line * LINE;
            let length = (value / most * BARS as f64).max(1.0);
            let colour = COLOURS[number % COLOURS.len()];
            svg += &format!(
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\n\
                 <rect x=\"{NAMES}\" y=\"{}\" width=\"{length:.1}\" height=\"{}\" fill=\"{colour}\"/>\n\
                 <text x=\"{:.1}\" y=\"{}\">{}</text>\n",
                NAMES - 8,
                y + 14,
                escape(&row.name),
                y + 2,
                LINE - 4,
                NAMES as f64 + length + 6.0,
                y + 14,
                figure(value),
            );
        }
    }
    svg + "</svg>\n"
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
