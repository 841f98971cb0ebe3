//! The codes of evidence, and evidence itself.

use std::borrow::Cow;

use serde::{Serialize, Serializer};
use serde_json::Value;

/// The codes of evidence: a closed list, part of the JSON interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "each is explained where it is produced, and in rtrack-verdicts(7)")]
pub enum Code {
    LeaseRefused,
    LeaseGranted,
    MappedBy,
    OpenBy,
    Attached,
    Mounted,
    NoPermission,
    NoLease,
    Persistent,
    CreatorAlive,
    CreatorDead,
    PidRecycled,
    GuardianAlive,
    Registered,
    Unread,
    TooYoung,
    Locked,
    AlwaysHeldProducer,
    NoFamily,
    FamilyAlive,
    NoKin,
    KinAlive,
    SharedMode,
    PartialProcessSight,
    PartialHolderSight,
    AssumedComplete,
    UnknownProducer,
    WeakProducer,
}

impl Code {
    /// All of them.
    pub const ALL: [Self; 28] = [
        Self::LeaseRefused,
        Self::LeaseGranted,
        Self::MappedBy,
        Self::OpenBy,
        Self::Attached,
        Self::Mounted,
        Self::NoPermission,
        Self::NoLease,
        Self::Persistent,
        Self::CreatorAlive,
        Self::CreatorDead,
        Self::PidRecycled,
        Self::GuardianAlive,
        Self::Registered,
        Self::Unread,
        Self::TooYoung,
        Self::Locked,
        Self::AlwaysHeldProducer,
        Self::NoFamily,
        Self::FamilyAlive,
        Self::NoKin,
        Self::KinAlive,
        Self::SharedMode,
        Self::PartialProcessSight,
        Self::PartialHolderSight,
        Self::AssumedComplete,
        Self::UnknownProducer,
        Self::WeakProducer,
    ];

    /// The code as tables and JSON have it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LeaseRefused => "lease-refused",
            Self::LeaseGranted => "lease-granted",
            Self::MappedBy => "mapped-by",
            Self::OpenBy => "open-by",
            Self::Attached => "attached",
            Self::Mounted => "mounted",
            Self::NoPermission => "no-permission",
            Self::NoLease => "no-lease",
            Self::Persistent => "persistent",
            Self::CreatorAlive => "creator-alive",
            Self::CreatorDead => "creator-dead",
            Self::PidRecycled => "pid-recycled",
            Self::GuardianAlive => "guardian-alive",
            Self::Registered => "registered",
            Self::Unread => "unread",
            Self::TooYoung => "too-young",
            Self::Locked => "locked",
            Self::AlwaysHeldProducer => "always-held-producer",
            Self::NoFamily => "no-family",
            Self::FamilyAlive => "family-alive",
            Self::NoKin => "no-kin",
            Self::KinAlive => "kin-alive",
            Self::SharedMode => "shared-mode",
            Self::PartialProcessSight => "partial-process-sight",
            Self::PartialHolderSight => "partial-holder-sight",
            Self::AssumedComplete => "assumed-complete",
            Self::UnknownProducer => "unknown-producer",
            Self::WeakProducer => "weak-producer",
        }
    }
}

/// One piece of evidence: a code for programs, a sentence for people, fields for machines.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Evidence {
    /// What kind of evidence.
    pub code: Code,
    /// One sentence.
    pub says: String,
    /// What the sentence is made of.
    #[serde(flatten)]
    pub fields: Fields,
}

/// A few keys and values, in their order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fields(pub Vec<(Cow<'static, str>, Value)>);

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}
