//! What a process says at its metrics endpoint, read as Prometheus reads it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

/// Status and body of `GET PATH` at `HOST:PORT`.
pub fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("the endpoint listens");
    let limit = Some(Duration::from_secs(30));
    stream.set_read_timeout(limit).expect("a time-out");
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n").expect("a request");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expect("an answer");
    let (head, body) = reply.split_once("\r\n\r\n").expect("head and body");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    (status.expect("a status"), body.to_owned())
}

/// A page of metrics.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Type of each family.
    pub families: BTreeMap<String, String>,
    /// Value of each series, as the page writes it: name and labels.
    series: BTreeMap<String, f64>,
}

impl Metrics {
    /// Those at `HOST:PORT`.
    pub fn of(address: &str) -> Self {
        let (status, text) = get(address, "/metrics");
        assert_eq!(status, 200, "{text}");
        Self::parse(&text)
    }

    /// Parses the text format 0.0.4, strictly: each sample follows the head of its family, none comes twice.
    pub fn parse(text: &str) -> Self {
        let mut metrics = Self::default();
        let (mut helped, mut family) = (BTreeSet::new(), String::new());
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').expect("a name and a text");
                assert!(!help.is_empty() && helped.insert(name.to_owned()), "{line}");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a name and a type");
                assert!(matches!(kind, "counter" | "gauge" | "histogram"), "{line}");
                assert!(helped.contains(name), "no help: {line}");
                let known = metrics.families.insert(name.to_owned(), kind.to_owned());
                assert!(known.is_none(), "twice: {line}");
                family = name.to_owned();
            } else {
                metrics.sample(line, &family);
            }
        }
        metrics
    }

    fn sample(&mut self, line: &str, family: &str) {
        let (series, value) = line.rsplit_once(' ').expect("a series and a value");
        let name = series.split('{').next().unwrap_or_default();
        let suffix = name
            .strip_prefix(family)
            .expect("under the head of its family");
        let is_histogram = self.families[family] == "histogram";
        match suffix {
            "" => assert!(!is_histogram, "{line}"),
            "_bucket" | "_sum" | "_count" => assert!(is_histogram, "{line}"),
            _ => panic!("not of {family}: {line}"),
        }
        assert!(!series.contains('{') || series.ends_with('}'), "{line}");
        let value = match value {
            "+Inf" => f64::INFINITY,
            value => value.parse().expect(line),
        };
        let known = self.series.insert(series.to_owned(), value);
        assert!(known.is_none(), "twice: {line}");
    }

    /// Sum of the series of this name that have all these labels, written as `op="read"`.
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let series = self.series.iter().filter(|(series, _)| {
            series.split('{').next() == Some(name)
                && labels.iter().all(|label| series.contains(label))
        });
        series.map(|(_, value)| value).sum()
    }
}
