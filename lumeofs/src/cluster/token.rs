//! Join tokens: what a new node must know of its cluster, in one line that survives copy and paste.
//!
//! `lumeofs-join-1/CLUSTER/SECRET/plain|tls/MASTERS/CHECKSUM`. The checksum (CRC-32C) tells a line that was cut off or
//! mistyped; it is no protection against anybody.

use lumeofs_base::checksum::crc32c;
use lumeofs_base::{Code, FsError, FsResult};
use lumeofs_proto::auth::Credentials;

/// What a token begins with; the number is the version of the format.
const HEAD: &str = "lumeofs-join-1";
/// Where a token may stand, so that it is not seen in a list of processes.
const VARIABLE: &str = "LUMEOFS_TOKEN";

/// What a new node must know.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    /// Cluster and secret.
    pub(crate) credentials: Credentials,
    /// Masters as `host:port`.
    pub(crate) masters: Vec<String>,
}

impl Token {
    /// The line.
    pub(crate) fn to_text(&self) -> String {
        let text = self.credentials.to_text();
        let line = |name: &str| {
            let mut lines = text.lines().filter_map(|line| line.split_once(" = "));
            let found = lines.find(|(key, _)| *key == name);
            found.map_or("", |(_, value)| value.trim_matches('"'))
        };
        let tls = if line("tls") == "true" {
            "tls"
        } else {
            "plain"
        };
        let body = format!(
            "{HEAD}/{}/{}/{tls}/{}",
            line("cluster_id"),
            line("secret"),
            self.masters.join(",")
        );
        format!("{body}/{:08x}", crc32c(body.as_bytes()))
    }

    /// Reads a line.
    pub(crate) fn parse(text: &str) -> FsResult<Self> {
        let text = text.trim();
        let bad = |why: &str| FsError::new(Code::Invalid, format!("join token: {why}"));
        if !text.starts_with("lumeofs-join-") {
            return Err(bad(
                "it does not begin with \"lumeofs-join-\": paste the whole line of `lumeofs cluster token`",
            ));
        }
        let cut = "it is cut off or damaged: paste the whole line of `lumeofs cluster token`";
        let (body, sum) = text.rsplit_once('/').ok_or_else(|| bad(cut))?;
        if sum.len() != 8 || u32::from_str_radix(sum, 16) != Ok(crc32c(body.as_bytes())) {
            return Err(bad(cut));
        }
        let parts: Vec<&str> = body.split('/').collect();
        let [HEAD, cluster, secret, tls, masters] = parts[..] else {
            return Err(bad(
                "it is of another version: use the same release of lumeofs on all machines",
            ));
        };
        let tls = match tls {
            "plain" => "",
            "tls" => "tls = true\n",
            _ => return Err(bad("want plain or tls")),
        };
        let text = format!("cluster_id = \"{cluster}\"\nsecret = \"{secret}\"\n{tls}");
        let masters =
            crate::access::split_masters(masters).map_err(|error| bad(&error.to_string()))?;
        Ok(Self {
            credentials: Credentials::parse(&text)?,
            masters,
        })
    }

    /// A token as it is given to a command: itself, `@FILE`, or in the environment.
    pub(crate) fn given(argument: Option<&str>) -> FsResult<Option<Self>> {
        let text = match argument {
            Some(argument) => match argument.strip_prefix('@') {
                Some(file) => Some(std::fs::read_to_string(file).map_err(|error| {
                    FsError::new(Code::Invalid, format!("join token in {file}: {error}"))
                })?),
                None => Some(argument.to_owned()),
            },
            None => std::env::var(VARIABLE).ok(),
        };
        text.map(|text| Self::parse(&text)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(credentials: Credentials) -> Token {
        Token {
            credentials,
            masters: vec!["10.0.0.1:7000".into(), "[::1]:7000".into()],
        }
    }

    #[test]
    fn a_token_says_what_it_was_made_of() {
        for credentials in [Credentials::generate(), Credentials::generate().with_tls()] {
            let token = token(credentials);
            let text = token.to_text();
            let read = Token::parse(&format!("  {text}\n")).unwrap();
            assert_eq!(read.credentials.to_text(), token.credentials.to_text());
            assert_eq!(read.masters, token.masters);
        }
    }

    #[test]
    fn a_token_that_was_cut_off_or_changed_is_told() {
        let text = token(Credentials::generate()).to_text();
        for end in 1..text.len() {
            assert!(Token::parse(&text[..end]).is_err(), "{end}");
        }
        let changed = text.replace("10.0.0.1", "10.0.0.2");
        let error = Token::parse(&changed).unwrap_err();
        assert!(error.context.contains("damaged"), "{error}");
        let error = Token::parse("abc").unwrap_err();
        assert!(error.context.contains("does not begin"), "{error}");
        let body = text.rsplit_once('/').unwrap().0.replace("join-1", "join-2");
        let later = format!("{body}/{:08x}", crc32c(body.as_bytes()));
        let error = Token::parse(&later).unwrap_err();
        assert!(error.context.contains("another version"), "{error}");
    }

    #[test]
    fn a_token_can_stand_in_a_file() {
        let file = std::env::temp_dir().join(format!("lumeofs-token-{}", std::process::id()));
        let text = token(Credentials::generate()).to_text();
        std::fs::write(&file, &text).unwrap();
        let read = Token::given(Some(&format!("@{}", file.display())));
        std::fs::remove_file(&file).unwrap();
        assert_eq!(read.unwrap().unwrap().to_text(), text);
    }
}
