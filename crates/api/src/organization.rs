//! The URL of an Azure DevOps organization or collection, in the forms that people write.

use std::fmt;

use url::Url;

/// URL of an organization (Azure DevOps Services) or a collection (Azure DevOps Server), without trailing slash.
///
/// Forms: `https://dev.azure.com/{org}`, `https://{org}.visualstudio.com`, `https://host[/tfs]/{Collection}`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OrganizationUrl {
    url: String,
    name: String,
    /// The organization's name is part of the host.
    hosted: bool,
}

/// Why a text is no organization URL. Displays as a fragment that tells the remedy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrganizationUrlError {
    /// Not an absolute URL.
    #[error("is not a URL; write it like https://dev.azure.com/my-org")]
    NotAUrl,
    /// Neither http nor https.
    #[error("must begin with https:// (or http:// for a test server)")]
    Scheme,
    /// Carries a user name or a password.
    #[error("must not carry credentials; put the token into the Secret named by patSecretName")]
    Credentials,
    /// Carries a query or a fragment.
    #[error("must end with the organization or collection, without ? or #")]
    Tail,
    /// No organization or collection in it.
    #[error("names no organization or collection; write it like https://dev.azure.com/my-org")]
    NoOrganization,
    /// Goes on after the organization.
    #[error("must end with the organization; a project or page is not part of it")]
    TooLong,
}

impl OrganizationUrl {
    /// Reads the URL; blanks around it and trailing slashes are tolerated.
    pub fn parse(text: &str) -> Result<Self, OrganizationUrlError> {
        let url = Url::parse(text.trim()).map_err(|_| OrganizationUrlError::NotAUrl)?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(OrganizationUrlError::Scheme);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(OrganizationUrlError::Credentials);
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(OrganizationUrlError::Tail);
        }
        let host = url.host_str().ok_or(OrganizationUrlError::NotAUrl)?;
        let segments: Vec<&str> = url
            .path()
            .split('/')
            .filter(|segment| !segment.is_empty())
            .collect();
        let hosted = host.strip_suffix(".visualstudio.com");
        let name = match (hosted, segments.as_slice()) {
            (Some(name), _) if !is_label(name) => return Err(OrganizationUrlError::NoOrganization),
            (Some(organization), [] | [_]) => organization.to_owned(),
            (None, [only]) if !only.eq_ignore_ascii_case("tfs") => (*only).to_owned(),
            (None, [_, last]) if host != "dev.azure.com" => (*last).to_owned(),
            (None, [] | [_]) => return Err(OrganizationUrlError::NoOrganization),
            _ => return Err(OrganizationUrlError::TooLong),
        };
        Ok(Self {
            hosted: hosted.is_some(),
            url: url.as_str().trim_end_matches('/').to_owned(),
            name,
        })
    }

    /// The URL that API paths are appended to, without trailing slash.
    pub fn as_str(&self) -> &str {
        &self.url
    }

    /// The URL in one form for each organization, to tell whether two are the same one; not to be asked. Hosted
    /// organizations answer under two hosts, and case does not matter.
    pub fn canonical(&self) -> String {
        if self.hosted {
            format!("https://dev.azure.com/{}", self.name.to_lowercase())
        } else {
            self.url.to_lowercase()
        }
    }

    /// Which organization it is: [`Self::canonical`] without the scheme, which only says how to reach it.
    pub fn address(&self) -> String {
        let canonical = self.canonical();
        let (_, address) = canonical.split_once("://").unwrap_or_default();
        address.to_owned()
    }

    /// The organization's or collection's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for OrganizationUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

/// What the part of a host before `.visualstudio.com` may be: the URL standard lets more through.
fn is_label(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-';
    !text.is_empty() && text.chars().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_people_write() {
        for (text, url, name) in [
            (
                "https://dev.azure.com/my-org",
                "https://dev.azure.com/my-org",
                "my-org",
            ),
            (
                " https://dev.azure.com/my-org/ ",
                "https://dev.azure.com/my-org",
                "my-org",
            ),
            (
                "https://my-org.visualstudio.com",
                "https://my-org.visualstudio.com",
                "my-org",
            ),
            (
                "https://my-org.visualstudio.com/DefaultCollection/",
                "https://my-org.visualstudio.com/DefaultCollection",
                "my-org",
            ),
            (
                "https://ado.corp.example/tfs/Main",
                "https://ado.corp.example/tfs/Main",
                "Main",
            ),
            (
                "https://ado.corp.example/Main//",
                "https://ado.corp.example/Main",
                "Main",
            ),
            (
                "http://127.0.0.1:8080/acme",
                "http://127.0.0.1:8080/acme",
                "acme",
            ),
        ] {
            let parsed = OrganizationUrl::parse(text).expect(text);
            assert_eq!((parsed.as_str(), parsed.name()), (url, name), "{text}");
        }
    }

    #[test]
    fn one_organization_under_two_urls() {
        let canonical = |text| OrganizationUrl::parse(text).map(|url| url.canonical());
        let hosted = canonical("https://dev.azure.com/My-Org/");
        assert_eq!(
            hosted,
            canonical("https://my-org.visualstudio.com/DefaultCollection")
        );
        assert_ne!(hosted, canonical("https://dev.azure.com/other"));
        assert_eq!(
            canonical("https://host/A.visualstudio.com").as_deref(),
            Ok("https://host/a.visualstudio.com"),
            "a collection of that name is not hosted"
        );
        assert_ne!(
            canonical("https://host/tfs/A"),
            canonical("https://host/tfs/B")
        );
    }

    #[test]
    fn an_address_says_which_organization_it_is_and_not_how_to_reach_it() {
        let address = |text| OrganizationUrl::parse(text).map(|url| url.address());
        for (text, expected) in [
            ("https://dev.azure.com/My-Org/", "dev.azure.com/my-org"),
            ("https://My-Org.visualstudio.com", "dev.azure.com/my-org"),
            (
                "http://ado.corp.example/tfs/Main",
                "ado.corp.example/tfs/main",
            ),
            (
                "https://ado.corp.example:443/tfs/Main",
                "ado.corp.example/tfs/main",
            ),
            (
                "https://ado.corp.example:8443/tfs/Main",
                "ado.corp.example:8443/tfs/main",
            ),
        ] {
            assert_eq!(address(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_organization() {
        use OrganizationUrlError::{Credentials, NoOrganization, NotAUrl, Scheme, Tail, TooLong};
        for (text, error) in [
            ("dev.azure.com/my-org", NotAUrl),
            ("", NotAUrl),
            ("ftp://dev.azure.com/my-org", Scheme),
            ("https://user:pat@dev.azure.com/my-org", Credentials),
            ("https://dev.azure.com/my-org?x=1", Tail),
            ("https://dev.azure.com", NoOrganization),
            ("https://host/tfs", NoOrganization),
            (
                "https://.visualstudio.com/DefaultCollection",
                NoOrganization,
            ),
            ("https://my`org.visualstudio.com", NoOrganization),
            ("https://dev.azure.com/my-org/project", TooLong),
            ("https://host/tfs/Main/project", TooLong),
        ] {
            assert_eq!(OrganizationUrl::parse(text), Err(error), "{text}");
        }
    }
}
