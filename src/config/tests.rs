//! What is taken, what is refused, and where the complaint points.

use std::path::Path;

use super::*;

fn parse(text: &str) -> Result<Config, Error> {
    Config::parse(text, Path::new("/etc/callsheet/callsheet.toml"))
}

/// The complaints as `line:column: message`.
fn complaints(text: &str) -> Vec<String> {
    match parse(text) {
        Ok(_) => Vec::new(),
        Err(Error::Invalid(complaints)) => {
            let shown = |c: &Complaint| {
                let place = c.place.as_ref().unwrap();
                format!("{}:{}: {}", place.line, place.column, c.message)
            };
            complaints.0.iter().map(shown).collect()
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn the_template_is_valid_as_it_stands() {
    let config = parse(TEMPLATE).unwrap();
    assert_eq!(config.flows.len(), 1);
    assert_eq!(config.data_dir, Path::new("/etc/callsheet/callsheet-data"));
    assert_eq!(config.database_url.to_string(), "sqlite:///etc/callsheet/callsheet-data/callsheet.db");
}
