//! Certificates that the operator makes itself: what a Secret holds of them, and what is to be done about it at a given
//! time. Pure, but for the random numbers of new keys. It never reads or writes the Secret.
//!
//! An authority signs the leaf, which is what replicas serve with. When the authority is renewed, the former one stays
//! trusted until it expires, and no leaf of it can outlive it. Its private key is dropped at once, so that nobody can sign with it
//! any more. A new authority signs nothing before it has been trusted for a while.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::ByteString;
use pem::{EncodeConfig, LineEnding, Pem};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData as _,
};
use rustls::{pki_types::CertificateDer, sign::CertifiedKey};
use time::OffsetDateTime;
use x509_parser::{
    certificate::X509Certificate, extensions::GeneralName, prelude::parse_x509_certificate,
};

use super::key::{self, Unusable};

/// Keys of the Secret: those of a TLS Secret, and the authority's.
const TRUSTED: &str = "ca.crt";
const AUTHORITY_KEY: &str = "ca.key";
const LEAF: &str = "tls.crt";
const LEAF_KEY: &str = "tls.key";

/// A certificate is valid from this long before it was made: the clock of who checks it may be behind.
const BACKDATED: Duration = Duration::from_secs(300);

/// How long certificates are valid, and when they are renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// Of the authority.
    pub authority: Lifetime,
    /// Of the leaf; shorter than the authority's.
    pub leaf: Lifetime,
}

/// How long a certificate is valid, and when it is renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// From its making to its end.
    pub valid: Duration,
    /// From its making to that of the next one; less than `valid`.
    pub renewed_after: Duration,
}

impl Default for Lifetimes {
    /// A year and 90 days, renewed at two thirds: an operator that does not run for a month is no trouble.
    fn default() -> Self {
        let days = |days: u32| {
            let valid = days * Duration::from_secs(24 * 3600);
            Lifetime {
                valid,
                renewed_after: valid * 2 / 3,
            }
        };
        Self {
            authority: days(365),
            leaf: days(90),
        }
    }
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A new authority, which is trusted beside the former one. The leaf stays.
    RenewAuthority,
    /// A new leaf, signed by the newest authority.
    RenewLeaf,
    /// Authorities that have expired are trusted no more.
    ForgetAuthorities,
}

/// Why a Secret's data is of no use.
#[derive(Debug, thiserror::Error)]
pub enum Useless {
    /// A key is missing.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// Not what its name says.
    #[error("{0} cannot be read")]
    Unreadable(&'static str),
    /// The authority's key does not fit its certificate.
    #[error("ca.key does not fit the first certificate of ca.crt")]
    OtherAuthority,
    /// The leaf cannot be served with.
    #[error(transparent)]
    Leaf(#[from] Unusable),
}

/// Why a certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotMade {
    #[error("failed to make a certificate")]
    Certificate(#[from] rcgen::Error),
    #[error("a certificate would end outside of the calendar")]
    Time(#[from] time::error::ComponentRange),
    #[error("what was made cannot be read")]
    Unreadable(#[from] Useless),
}

/// What the Secret holds, as far as it can be used.
pub(crate) struct Certificates {
    /// Those to be trusted, the newest first; never empty.
    authorities: Vec<Certificate>,
    /// The private key of the newest authority, PEM.
    authority_key: KeyPair,
    leaf: Certificate,
    leaf_key: String,
    served: Arc<CertifiedKey>,
}

/// A certificate and when it is valid, in seconds since 1970.
struct Certificate {
    der: Vec<u8>,
    from: i64,
    until: i64,
}

impl Certificate {
    fn read(der: &[u8]) -> Option<Self> {
        let parsed = parse(der)?;
        Some(Self {
            from: parsed.validity().not_before.timestamp(),
            until: parsed.validity().not_after.timestamp(),
            der: der.to_vec(),
        })
    }

    fn is_valid(&self, now: Timestamp) -> bool {
        (self.from..self.until).contains(&now.as_second())
    }

    /// Whether it is time for the next one, or a wrong clock put all of its life into the future.
    fn is_due(&self, now: Timestamp, lifetime: Lifetime) -> bool {
        let left = seconds(lifetime.valid.saturating_sub(lifetime.renewed_after));
        !self.is_valid(now) || self.until.saturating_sub(now.as_second()) <= left
    }

    fn pem(&self) -> Pem {
        Pem::new("CERTIFICATE", self.der.as_slice())
    }
}

impl Certificates {
    /// Reads a Secret's data.
    pub(crate) fn read(data: &BTreeMap<String, ByteString>) -> Result<Self, Useless> {
        let bytes = |name: &'static str| match data.get(name) {
            Some(ByteString(bytes)) => Ok(bytes.as_slice()),
            None => Err(Useless::Missing(name)),
        };
        let certificates = |name: &'static str| {
            let pems = pem::parse_many(bytes(name)?).unwrap_or_default();
            let read = pems.iter().map(|pem| Certificate::read(pem.contents()));
            let read: Option<Vec<Certificate>> = read.collect();
            let read = read.filter(|read| !read.is_empty());
            read.ok_or(Useless::Unreadable(name))
        };
        let authorities = certificates(TRUSTED)?;
        let authority_key = std::str::from_utf8(bytes(AUTHORITY_KEY)?).unwrap_or_default();
        let authority_key =
            KeyPair::from_pem(authority_key).map_err(|_| Useless::Unreadable(AUTHORITY_KEY))?;
        let newest = parse(&authorities[0].der).ok_or(Useless::Unreadable(TRUSTED))?;
        if newest.public_key().raw != authority_key.subject_public_key_info() {
            return Err(Useless::OtherAuthority);
        }
        let leaf = certificates(LEAF)?.swap_remove(0);
        let leaf_key = bytes(LEAF_KEY)?;
        let served = key::read(bytes(LEAF)?, leaf_key)?;
        Ok(Self {
            authorities,
            authority_key,
            leaf,
            leaf_key: String::from_utf8_lossy(leaf_key).into_owned(),
            served,
        })
    }

    /// What the Secret is to hold.
    pub(crate) fn data(&self) -> BTreeMap<String, ByteString> {
        let entries = [
            (TRUSTED, self.trusted()),
            (AUTHORITY_KEY, self.authority_key.serialize_pem()),
            (LEAF, encode(&[self.leaf.pem()])),
            (LEAF_KEY, self.leaf_key.clone()),
        ];
        let entries = entries.map(|(name, text)| (name.to_owned(), ByteString(text.into_bytes())));
        entries.into()
    }

    /// The authorities to be trusted, as PEM: what the configurations of the webhooks need.
    pub(super) fn trusted(&self) -> String {
        let authorities: Vec<Pem> = self.authorities.iter().map(Certificate::pem).collect();
        encode(&authorities)
    }

    /// What to serve with.
    pub(super) fn served(&self) -> Arc<CertifiedKey> {
        self.served.clone()
    }

    /// When the leaf ends.
    pub(super) fn until(&self) -> Timestamp {
        Timestamp::from_second(self.leaf.until).unwrap_or(Timestamp::MAX)
    }
}

/// Whether a client that trusts these authorities takes the leaf for this host now.
fn is_taken(leaf: &Certificate, authorities: &[Certificate], host: &str, now: Timestamp) -> bool {
    let Some(parsed) = parse(&leaf.der) else {
        return false;
    };
    let signed = authorities.iter().any(|authority| {
        let authority = parse(&authority.der).filter(|_| authority.is_valid(now));
        authority.is_some_and(|authority| {
            parsed.issuer() == authority.subject()
                && parsed
                    .verify_signature(Some(authority.public_key()))
                    .is_ok()
        })
    });
    signed && leaf.is_valid(now) && hosts(&parsed).contains(host)
}

/// Makes all of it anew.
pub(super) fn make(
    host: &str,
    lifetimes: Lifetimes,
    now: Timestamp,
) -> Result<Certificates, NotMade> {
    let (authority, key) = new_authority(lifetimes, now)?;
    with_new_leaf(vec![authority], key, host, lifetimes, now)
}

/// What is to be done next, if anything. `trusted`: for long enough, all that verify the leaf have trusted all of these
/// authorities.
pub(super) fn decide(
    held: &Certificates,
    host: &str,
    lifetimes: Lifetimes,
    now: Timestamp,
    trusted: bool,
) -> Option<Step> {
    let newest = held.authorities.first()?;
    if newest.is_due(now, lifetimes.authority) {
        return Some(Step::RenewAuthority);
    }
    if held
        .authorities
        .iter()
        .any(|authority| authority.until <= now.as_second())
    {
        return Some(Step::ForgetAuthorities);
    }
    // Nobody takes the leaf as it is, so there is nothing to lose by another.
    if !is_taken(&held.leaf, &held.authorities, host, now) {
        return Some(Step::RenewLeaf);
    }
    (trusted && held.leaf.is_due(now, lifetimes.leaf)).then_some(Step::RenewLeaf)
}

/// Takes a step.
pub(super) fn take(
    step: Step,
    mut held: Certificates,
    host: &str,
    lifetimes: Lifetimes,
    now: Timestamp,
) -> Result<Certificates, NotMade> {
    if step == Step::RenewLeaf {
        return with_new_leaf(held.authorities, held.authority_key, host, lifetimes, now);
    }
    held.authorities
        .retain(|authority| authority.until > now.as_second());
    if step == Step::RenewAuthority {
        let (authority, key) = new_authority(lifetimes, now)?;
        held.authorities.insert(0, authority);
        held.authority_key = key;
    }
    Ok(held)
}

fn new_authority(lifetimes: Lifetimes, now: Timestamp) -> Result<(Certificate, KeyPair), NotMade> {
    let key = KeyPair::generate()?;
    let mut params = params(
        &[],
        now,
        now.as_second()
            .saturating_add(seconds(lifetimes.authority.valid)),
    )?;
    params
        .distinguished_name
        .push(DnType::CommonName, "azdo-runner-operator webhook authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key)?;
    let certificate = Certificate::read(certificate.der()).ok_or(Useless::Unreadable(TRUSTED))?;
    Ok((certificate, key))
}

fn with_new_leaf(
    authorities: Vec<Certificate>,
    authority_key: KeyPair,
    host: &str,
    lifetimes: Lifetimes,
    now: Timestamp,
) -> Result<Certificates, NotMade> {
    let newest = authorities.first().ok_or(Useless::Missing(TRUSTED))?;
    let until = now
        .as_second()
        .saturating_add(seconds(lifetimes.leaf.valid))
        .min(newest.until);
    let mut params = params(&[host.to_owned()], now, until)?;
    params
        .distinguished_name
        .push(DnType::CommonName, "azdo-runner-operator webhook");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let issuer = CertificateDer::from(newest.der.as_slice());
    let issuer = Issuer::from_ca_cert_der(&issuer, &authority_key)?;
    let leaf = params.signed_by(&key, &issuer)?;
    let leaf = Certificate::read(leaf.der()).ok_or(Useless::Unreadable(LEAF))?;
    let leaf_key = key.serialize_pem();
    let served = key::read(encode(&[leaf.pem()]).as_bytes(), leaf_key.as_bytes());
    let served = served.map_err(Useless::Leaf)?;
    Ok(Certificates {
        authorities,
        authority_key,
        leaf,
        leaf_key,
        served,
    })
}

fn params(hosts: &[String], now: Timestamp, until: i64) -> Result<CertificateParams, NotMade> {
    let mut params = CertificateParams::new(hosts)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.not_before =
        OffsetDateTime::from_unix_timestamp(now.as_second().saturating_sub(seconds(BACKDATED)))?;
    params.not_after = OffsetDateTime::from_unix_timestamp(until)?;
    Ok(params)
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

fn parse(der: &[u8]) -> Option<X509Certificate<'_>> {
    let (rest, certificate) = parse_x509_certificate(der).ok()?;
    rest.is_empty().then_some(certificate)
}

/// The names and addresses that a certificate is for.
fn hosts(certificate: &X509Certificate<'_>) -> BTreeSet<String> {
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.map(|names| names.value.general_names.as_slice());
    let host = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(address) => match address.len() {
            4 => <[u8; 4]>::try_from(*address).ok().map(IpAddr::from),
            _ => <[u8; 16]>::try_from(*address).ok().map(IpAddr::from),
        }
        .map(|address| address.to_string()),
        _ => None,
    };
    names.into_iter().flatten().filter_map(host).collect()
}

fn encode(pems: &[Pem]) -> String {
    let config = EncodeConfig::new().set_line_ending(LineEnding::LF);
    pem::encode_many_config(pems, config)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use jiff::SignedDuration;

    use super::*;

    const HOST: &str = "webhook.operators.svc";
    const DAY: SignedDuration = SignedDuration::from_hours(24);

    fn start() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    fn made() -> Certificates {
        make(HOST, Lifetimes::default(), start()).unwrap()
    }

    fn decided(held: &Certificates, days: i32, trusted: bool) -> Option<Step> {
        decide(
            held,
            HOST,
            Lifetimes::default(),
            start() + DAY * days,
            trusted,
        )
    }

    fn taken(step: Step, held: Certificates, days: i32) -> Certificates {
        take(step, held, HOST, Lifetimes::default(), start() + DAY * days).unwrap()
    }

    #[test]
    fn what_is_written_reads_back() {
        let made = made();
        let read = Certificates::read(&made.data()).unwrap();
        assert_eq!(read.data(), made.data());
        assert_eq!(read.until(), start() + DAY * 90);
        assert!(is_taken(&read.leaf, &read.authorities, HOST, start()));
    }

    #[test]
    fn both_are_renewed_when_a_third_of_their_life_is_left() {
        let held = made();
        assert_eq!(decided(&held, 0, true), None);
        assert_eq!(decided(&held, 59, true), None);
        assert_eq!(decided(&held, 60, true), Some(Step::RenewLeaf));
        assert_eq!(decided(&held, 243, true), Some(Step::RenewLeaf));
        assert_eq!(decided(&held, 244, true), Some(Step::RenewAuthority));
    }

    #[test]
    fn a_new_authority_signs_nothing_before_it_is_trusted() {
        let held = taken(Step::RenewLeaf, made(), 180);
        let held = taken(Step::RenewAuthority, held, 244);
        assert_eq!(held.authorities.len(), 2);
        assert_eq!(
            decided(&held, 244, false),
            None,
            "the leaf of the former one is still good"
        );
        assert_eq!(
            decided(&held, 244, true),
            Some(Step::RenewLeaf),
            "64 days old"
        );
        assert_eq!(decided(&held, 269, false), None);
        assert_eq!(
            decided(&held, 270, false),
            Some(Step::RenewLeaf),
            "nobody takes it any more"
        );
        let held = taken(Step::RenewLeaf, held, 244);
        assert_eq!(
            held.authorities.len(),
            2,
            "a replica may still serve with the former leaf"
        );
        assert_eq!(decided(&held, 244, true), None);
        assert_eq!(decided(&held, 333, false), None);
        assert_eq!(decided(&held, 334, false), Some(Step::RenewLeaf));
    }

    #[test]
    fn an_authority_is_forgotten_when_it_has_expired() {
        let held = taken(Step::RenewAuthority, made(), 244);
        let held = taken(Step::RenewLeaf, held, 330);
        assert_eq!(decided(&held, 364, true), None);
        assert_eq!(decided(&held, 366, true), Some(Step::ForgetAuthorities));
        let held = taken(Step::ForgetAuthorities, held, 366);
        assert_eq!(held.authorities.len(), 1);
        assert_eq!(decided(&held, 366, true), None);
    }

    #[test]
    fn a_leaf_that_nobody_takes_is_replaced_at_once() {
        let held = made();
        let lifetimes = Lifetimes::default();
        let another_host = decide(&held, "other.operators.svc", lifetimes, start(), false);
        assert_eq!(another_host, Some(Step::RenewLeaf));
        let before = start() - DAY;
        let clock_was_wrong = decide(&held, HOST, lifetimes, before, false);
        assert_eq!(clock_was_wrong, Some(Step::RenewAuthority));
        let address = make("127.0.0.1", lifetimes, start()).unwrap();
        assert_eq!(
            decide(&address, "127.0.0.1", lifetimes, start(), false),
            None
        );

        let mut foreign = made();
        foreign.leaf = made().leaf;
        assert_eq!(decided(&foreign, 0, false), Some(Step::RenewLeaf));
    }

    #[test]
    fn garbage_is_told_from_certificates() {
        let good = made().data();
        let other = made().data();
        let with = |name: &str, value: Option<&[u8]>| {
            let mut data = good.clone();
            match value {
                Some(value) => data.insert(name.to_owned(), ByteString(value.to_vec())),
                None => data.remove(name),
            };
            Certificates::read(&data).err().unwrap().to_string()
        };
        let of_other = |name: &str| Some(other[name].0.as_slice());
        for (name, value, said) in [
            (TRUSTED, None, "ca.crt is missing"),
            (TRUSTED, Some(&b"garbage"[..]), "ca.crt cannot be read"),
            (TRUSTED, of_other(TRUSTED), "ca.key does not fit"),
            (AUTHORITY_KEY, Some(b""), "ca.key cannot be read"),
            (
                LEAF,
                Some(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
                "tls.crt cannot be read",
            ),
            (LEAF_KEY, Some(b"garbage"), "tls.key holds no private key"),
            (LEAF_KEY, of_other(LEAF_KEY), "tls.key does not fit tls.crt"),
        ] {
            let error = with(name, value);
            assert!(error.contains(said), "{name}: {error}");
        }
    }

    /// What went wrong in three years, looked at every two days, with everything that reads the Secret or the trusted
    /// authorities being one look behind.
    fn trouble_in_three_years(
        mut step: impl FnMut(Certificates, Timestamp, bool) -> Certificates,
    ) -> Vec<Timestamp> {
        let mut held = made();
        let mut trouble = Vec::new();
        for look in 1..550 {
            let now = start() + DAY * (2 * look);
            let before = Certificates::read(&held.data()).unwrap();
            // Trusted since the last look, unless that look changed it.
            held = step(held, now, true);
            let fine = [&before, &held].iter().all(|served| {
                [&before, &held]
                    .iter()
                    .all(|trusted| is_taken(&served.leaf, &trusted.authorities, HOST, now))
            });
            if !fine {
                trouble.push(now);
            }
        }
        trouble
    }

    #[test]
    fn at_any_time_any_leaf_in_use_is_taken_by_whoever_is_a_look_behind() {
        let careful = |mut held: Certificates, now, mut trusted| {
            while let Some(step) = decide(&held, HOST, Lifetimes::default(), now, trusted) {
                held = take(step, held, HOST, Lifetimes::default(), now).unwrap();
                trusted &= step != Step::RenewAuthority;
            }
            held
        };
        assert_eq!(trouble_in_three_years(careful), []);

        // The control: all of it at once, as soon as something is due.
        let naive = |held: Certificates, now, trusted| match decide(
            &held,
            HOST,
            Lifetimes::default(),
            now,
            trusted,
        ) {
            Some(_) => make(HOST, Lifetimes::default(), now).unwrap(),
            None => held,
        };
        assert!(!trouble_in_three_years(naive).is_empty());
    }
}
