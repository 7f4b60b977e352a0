//! What a service tells over HTTP, and the metrics in it.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;

use super::service::Service;

/// Asks a server at `address` and reads its answer to the end: the status and the body.
pub fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap_or_default().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

/// The samples of one scrape, by name and labels as Prometheus' text has them.
#[derive(Debug)]
pub struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    pub fn of(service: &Service) -> Self {
        let (status, text) = get(&service.address(), "/metrics");
        assert_eq!(status, 200, "{text}");
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Self(
            lines
                .map(|line| {
                    let (series, value) = line.rsplit_once(' ').unwrap();
                    (series.to_owned(), value.parse().unwrap())
                })
                .collect(),
        )
    }

    /// One sample; `labels` are `name="value"` in alphabetical order, joined by commas.
    #[track_caller]
    pub fn value(&self, metric: &str, labels: &str) -> f64 {
        let series = if labels.is_empty() { metric.to_owned() } else { format!("{metric}{{{labels}}}") };
        *self.0.get(&series).unwrap_or_else(|| panic!("no {series} in {:#?}", self.0))
    }

    /// Every sample of a metric, by its labels.
    pub fn all<'a>(&'a self, metric: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        self.0.iter().filter_map(move |(series, value)| {
            let labels = series.strip_prefix(metric)?;
            (labels.is_empty() || labels.starts_with('{')).then_some((labels, *value))
        })
    }
}
