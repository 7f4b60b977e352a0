//! Prometheus' text format 0.0.4, byte for byte as the crate's own encoder writes it, in a third of its time: most lines of
//! a scrape are the buckets of histograms, which differ in their bounds and counts only.
//!
//! <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>

use std::fmt::Write;

use prometheus::proto::{Metric, MetricFamily, MetricType};

/// All of them as text.
///
/// # Errors
/// Where one is of a kind that this service has none of.
pub(super) fn encode(families: &[MetricFamily]) -> Result<String, prometheus::Error> {
    // So much for a line, and for a line of each bucket.
    let lines: usize = families.iter().flat_map(MetricFamily::get_metric).map(|metric| 1 + buckets(metric)).sum();
    let mut text = String::with_capacity(lines * 96);
    for family in families {
        let (name, kind) = (family.name(), family.get_field_type());
        let word = match kind {
            MetricType::COUNTER => "counter",
            MetricType::GAUGE => "gauge",
            MetricType::HISTOGRAM => "histogram",
            MetricType::SUMMARY | MetricType::UNTYPED => {
                return Err(prometheus::Error::Msg(format!("{name} is neither counter, gauge nor histogram")));
            }
        };
        text.extend(["# HELP ", name, " "]);
        escaped(&mut text, family.help(), false);
        text.extend(["\n# TYPE ", name, " ", word, "\n"]);
        // Those of one family have the same bounds.
        let mut bounds: Vec<(f64, String)> = Vec::new();
        for metric in family.get_metric() {
            let labels = labels(metric);
            match kind {
                MetricType::HISTOGRAM => histogram(&mut text, name, &labels, metric, &mut bounds),
                MetricType::COUNTER => sample(&mut text, name, "", &labels, metric.get_counter().get_value()),
                MetricType::GAUGE | MetricType::SUMMARY | MetricType::UNTYPED => {
                    sample(&mut text, name, "", &labels, metric.get_gauge().get_value());
                }
            }
        }
    }
    Ok(text)
}

fn buckets(metric: &Metric) -> usize {
    metric.get_histogram().get_bucket().len()
}

/// Its labels as they stand between braces; empty where there are none.
fn labels(metric: &Metric) -> String {
    let mut text = String::new();
    for (place, label) in metric.get_label().iter().enumerate() {
        text.extend([if place > 0 { "," } else { "" }, label.name(), "=\""]);
        escaped(&mut text, label.value(), true);
        text.push('"');
    }
    text
}

fn histogram(text: &mut String, name: &str, labels: &str, metric: &Metric, bounds: &mut Vec<(f64, String)>) {
    let histogram = metric.get_histogram();
    let joint = if labels.is_empty() { "" } else { "," };
    let start = format!("{name}_bucket{{{labels}{joint}le=\"");
    for (place, bucket) in histogram.get_bucket().iter().enumerate() {
        let bound = bucket.upper_bound();
        if bounds.get(place).is_none_or(|(known, _)| known.to_bits() != bound.to_bits()) {
            bounds.truncate(place);
            bounds.push((bound, bound.to_string()));
        }
        let bound = bounds.get(place).map_or("", |(_, text)| text.as_str());
        text.extend([start.as_str(), bound, "\"} "]);
        count(text, bucket.cumulative_count());
    }
    let all = histogram.get_sample_count();
    text.extend([start.as_str(), "+Inf\"} "]);
    count(text, all);
    sample(text, name, "_sum", labels, histogram.get_sample_sum());
    let (open, close) = if labels.is_empty() { ("", "") } else { ("{", "}") };
    text.extend([name, "_count", open, labels, close, " "]);
    count(text, all);
}

fn sample(text: &mut String, name: &str, suffix: &str, labels: &str, value: f64) {
    let (open, close) = if labels.is_empty() { ("", "") } else { ("{", "}") };
    text.extend([name, suffix, open, labels, close, " "]);
    // Writing to a String does not fail.
    let _ = writeln!(text, "{value}");
}

fn count(text: &mut String, count: u64) {
    let _ = writeln!(text, "{count}");
}

/// Appends a text, with what would end it or its line behind a backslash.
fn escaped(text: &mut String, raw: &str, quotes: bool) {
    for character in raw.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '"' if quotes => text.push_str("\\\""),
            other => text.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry, TextEncoder};

    use super::*;

    #[test]
    fn it_says_what_the_crate_would_say() {
        let registry = Registry::new();
        let counter = IntCounterVec::new(Opts::new("c_total", "A \\ and\na \"line\"."), &["a", "b"]).unwrap();
        counter.with_label_values(&["x\"y\\z\nä", ""]).inc_by(1 << 40);
        let gauge = GaugeVec::new(Opts::new("g", "Gauges."), &["a"]).unwrap();
        for (name, value) in [("n", f64::NAN), ("i", f64::NEG_INFINITY), ("p", f64::INFINITY), ("s", 1e-9), ("b", 1e21)]
        {
            gauge.with_label_values(&[name]).set(value);
        }
        let histogram = HistogramVec::new(HistogramOpts::new("h", "H.").buckets(vec![0.01, 1.0, 172_800.0]), &["a"]);
        let histogram = histogram.unwrap();
        for value in [0.005, 0.5, 1e6] {
            histogram.with_label_values(&["one"]).observe(value);
        }
        histogram.with_label_values(&["none"]);
        let plain = Histogram::with_opts(HistogramOpts::new("p", "P.").buckets(vec![0.5])).unwrap();
        plain.observe(0.25);
        registry.register(Box::new(counter)).unwrap();
        registry.register(Box::new(gauge)).unwrap();
        registry.register(Box::new(histogram)).unwrap();
        registry.register(Box::new(plain)).unwrap();
        let families = registry.gather();
        assert_eq!(encode(&families).unwrap(), TextEncoder::new().encode_to_string(&families).unwrap());
    }
}
