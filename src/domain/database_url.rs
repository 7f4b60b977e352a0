//! Which database to use, read from a URL and shown without its password.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where the tables live.
#[derive(Clone, PartialEq, Eq)]
pub enum DatabaseUrl {
    /// An embedded SQLite database: the path of its file, as written or made absolute by [`DatabaseUrl::resolved`].
    Sqlite(PathBuf),
    /// A PostgreSQL server.
    Postgres(ServerUrl),
    /// A MySQL or MariaDB server.
    MySql(ServerUrl),
}

/// A server's URL; what it shows of itself has no password in it.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerUrl(String);

/// Why a text names no database that Callsheet can use; the text itself is never repeated, since it may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDatabaseUrl {
    /// A database that ends with the process.
    #[error("an in-memory SQLite database would be lost with the process; name a file: sqlite://path/to/callsheet.db")]
    InMemory,
    /// No file named.
    #[error("no file is named after sqlite://; write sqlite://path/to/callsheet.db")]
    NoPath,
    /// Options of a SQLite URL.
    #[error("a sqlite:// URL takes no option other than ?mode=rwc, which is the default")]
    SqliteOption,
    /// Some other scheme, or none.
    #[error("a database URL starts with sqlite://, postgres:// or mysql://")]
    Scheme,
    /// A line break or the like.
    #[error("a database URL holds no control characters")]
    ControlCharacter,
}

impl FromStr for DatabaseUrl {
    type Err = InvalidDatabaseUrl;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.chars().any(char::is_control) {
            return Err(InvalidDatabaseUrl::ControlCharacter);
        }
        let Some((scheme, rest)) = text.split_once(':') else { return Err(InvalidDatabaseUrl::Scheme) };
        match scheme.to_ascii_lowercase().as_str() {
            "sqlite" => sqlite_path(rest).map(Self::Sqlite),
            "postgres" | "postgresql" if rest.starts_with("//") => {
                Ok(Self::Postgres(ServerUrl(format!("postgres:{rest}"))))
            }
            "mysql" | "mariadb" if rest.starts_with("//") => Ok(Self::MySql(ServerUrl(format!("mysql:{rest}")))),
            _ => Err(InvalidDatabaseUrl::Scheme),
        }
    }
}

fn sqlite_path(rest: &str) -> Result<PathBuf, InvalidDatabaseUrl> {
    let rest = rest.strip_prefix("//").unwrap_or(rest);
    let (path, options) = rest.split_once('?').unwrap_or((rest, ""));
    if path == ":memory:" || options.contains("mode=memory") {
        return Err(InvalidDatabaseUrl::InMemory);
    }
    if !matches!(options, "" | "mode=rwc") {
        return Err(InvalidDatabaseUrl::SqliteOption);
    }
    if path.is_empty() || path.ends_with('/') { Err(InvalidDatabaseUrl::NoPath) } else { Ok(PathBuf::from(path)) }
}

impl DatabaseUrl {
    /// This URL with a relative SQLite path taken as relative to `directory`.
    #[must_use]
    pub fn resolved(self, directory: &Path) -> Self {
        match self {
            Self::Sqlite(path) => Self::Sqlite(directory.join(path)),
            Self::Postgres(_) | Self::MySql(_) => self,
        }
    }

    /// The kind of database, in lower case, as logs and tables name it.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "sqlite",
            Self::Postgres(_) => "postgres",
            Self::MySql(_) => "mysql",
        }
    }
}

impl ServerUrl {
    /// The whole URL, password included: for connecting, never for showing.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite://{}", path.display()),
            Self::Postgres(url) | Self::MySql(url) => url.fmt(f),
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, rest) = self.0.split_once("://").unwrap_or_default();
        write!(f, "{scheme}://")?;
        // A password may hold '@', '/' or '?' that should have been escaped, so the last '@' anywhere ends it: where
        // that is wrong, too much is hidden and never too little.
        let server = match rest.rsplit_once('@') {
            Some((user, server)) => {
                match user.split_once(':') {
                    Some((name, _)) => write!(f, "{name}:***@")?,
                    None => write!(f, "{user}@")?,
                }
                server
            }
            None => rest,
        };
        let (place, options) = server.split_once('?').unwrap_or((server, ""));
        f.write_str(place)?;
        for (index, option) in options.split('&').filter(|option| !option.is_empty()).enumerate() {
            f.write_str(if index == 0 { "?" } else { "&" })?;
            match option.split_once('=') {
                Some((name, _)) if !SHOWN_OPTIONS.contains(&name) => write!(f, "{name}=***")?,
                _ => f.write_str(option)?,
            }
        }
        Ok(())
    }
}

/// Options of a server's URL that hold no secret; every other one is hidden.
const SHOWN_OPTIONS: [&str; 11] = [
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "sslmode",
    "sslrootcert",
    "application_name",
    "socket",
    "ssl-mode",
    "ssl-ca",
];

impl fmt::Debug for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sqlite(path: &str) -> Result<DatabaseUrl, InvalidDatabaseUrl> {
        Ok(DatabaseUrl::Sqlite(PathBuf::from(path)))
    }

    #[test]
    fn sqlite_urls_name_a_file() {
        assert_eq!("sqlite://data/callsheet.db".parse(), sqlite("data/callsheet.db"));
        assert_eq!("sqlite:///var/lib/a b.db".parse(), sqlite("/var/lib/a b.db"));
        assert_eq!("sqlite:x.db?mode=rwc".parse(), sqlite("x.db"));
        assert_eq!(
            sqlite("data/x.db").unwrap().resolved(Path::new("/etc/callsheet")),
            sqlite("/etc/callsheet/data/x.db").unwrap()
        );
        assert_eq!(sqlite("/abs.db").unwrap().resolved(Path::new("/etc")), sqlite("/abs.db").unwrap());
    }

    #[test]
    fn what_is_no_usable_database_is_refused_with_a_reason() {
        use InvalidDatabaseUrl as E;
        for (text, error) in [
            ("sqlite::memory:", E::InMemory),
            ("sqlite://:memory:", E::InMemory),
            ("sqlite://x?mode=memory", E::InMemory),
            ("sqlite://x?mode=ro", E::SqliteOption),
            ("sqlite://", E::NoPath),
            ("sqlite://dir/", E::NoPath),
            ("mysql:db", E::Scheme),
            ("oracle://h/db", E::Scheme),
            ("callsheet.db", E::Scheme),
            ("postgres:db", E::Scheme),
            ("sqlite://a\nb", E::ControlCharacter),
        ] {
            assert_eq!(text.parse::<DatabaseUrl>(), Err(error), "{text:?}");
        }
    }

    #[test]
    fn a_password_is_never_shown() {
        for (text, shown) in [
            ("postgres://ann:s3cret@db:5432/jobs", "postgres://ann:***@db:5432/jobs"),
            ("postgresql://ann:s3/cr@e?t@db/jobs", "postgres://ann:***@db/jobs"),
            ("postgres://ann@db/jobs?sslmode=require", "postgres://ann@db/jobs?sslmode=require"),
            ("postgres:///jobs?host=/run/pg&password=s3cret", "postgres:///jobs?host=/run/pg&password=***"),
            ("mysql://ann:s3cret@db:3306/jobs?ssl-mode=REQUIRED", "mysql://ann:***@db:3306/jobs?ssl-mode=REQUIRED"),
            ("mariadb://ann:s3@cret@db/jobs", "mysql://ann:***@db/jobs"),
        ] {
            let url: DatabaseUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), shown);
            assert_eq!(format!("{url:?}"), shown);
        }
    }

    proptest! {
        #[test]
        fn no_part_of_a_long_password_is_shown(password in "[a-z@/?:&=#%]{12,30}") {
            let url: DatabaseUrl = format!("postgres://ann:{password}@db.example/jobs").parse().unwrap();
            prop_assert_eq!(url.to_string(), "postgres://ann:***@db.example/jobs");
        }
    }
}
