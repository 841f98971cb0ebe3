//! The resource tracker: the protocol and the registry are pure, the rest touches descriptors.
