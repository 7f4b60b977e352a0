//! What a form or an address says: names and values, of which a name may stand there more than once.

use serde::Deserialize;

/// The fields, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub(crate) struct Fields(Vec<(String, String)>);

impl Fields {
    /// Reads a query; what is no valid UTF-8 in it is read lossily.
    pub(crate) fn parse(query: &str) -> Self {
        serde_urlencoded::from_str(query).unwrap_or_default()
    }

    /// The first value of this name.
    pub(crate) fn first<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        self.all(name).next()
    }

    /// Every value of this name.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_may_stand_there_more_than_once() {
        let fields = Fields::parse("a=1&b=x+y%2Fz&a=%C3%A4&c&e=%ff&%zz=1&&=");
        assert_eq!(fields.all("a").collect::<Vec<_>>(), ["1", "ä"]);
        assert_eq!(
            (fields.first("b"), fields.first("c"), fields.first("e")),
            (Some("x y/z"), Some(""), Some("\u{fffd}"))
        );
        assert_eq!(fields.first("f"), None);
    }

    proptest! {
        #[test]
        fn whatever_is_encoded_is_read_back(text in ".*") {
            let query = format!("a={}", super::super::parts::encoded(&text));
            let fields = Fields::parse(&query);
            prop_assert_eq!(fields.first("a"), Some(text.as_str()));
        }
    }
}
