//! The JSON Schemas of what programs read.

use serde_json::Value;

/// Every published schema, by what documents call it.
const SCHEMAS: &[(&str, &str)] = &[
    ("rtrack.archive/1", include_str!("../../../schema/archive.schema.json")),
    ("rtrack.audit/1", include_str!("../../../schema/audit.schema.json")),
    ("rtrack.groups/1", include_str!("../../../schema/groups.schema.json")),
    ("rtrack.inventory/1", include_str!("../../../schema/inventory.schema.json")),
    ("rtrack.leaks/1", include_str!("../../../schema/leaks.schema.json")),
    ("rtrack.limits/1", include_str!("../../../schema/limits.schema.json")),
    ("rtrack.log/1", include_str!("../../../schema/log.schema.json")),
    ("rtrack.probe/1", include_str!("../../../schema/probe.schema.json")),
    ("rtrack.producers/1", include_str!("../../../schema/producers.schema.json")),
    ("rtrack.reap/1", include_str!("../../../schema/reap.schema.json")),
    ("rtrack.restore/1", include_str!("../../../schema/restore.schema.json")),
    ("rtrack.show/1", include_str!("../../../schema/show.schema.json")),
    ("rtrack.tracker/1", include_str!("../../../schema/tracker.schema.json")),
    ("rtrack.trackers/1", include_str!("../../../schema/trackers.schema.json")),
];

/// Fails the case unless `document` is what the schema that it names says.
#[track_caller]
pub(crate) fn validate(document: &Value) {
    let faults = faults(document);
    assert!(faults.is_empty(), "{document:#}\nis against its schema:\n{}", faults.join("\n"));
}

/// What is wrong with `document`, by the schema that it names.
pub(crate) fn faults(document: &Value) -> Vec<String> {
    let parse = |text| serde_json::from_str::<Value>(text).unwrap();
    let Some((_, schema)) = SCHEMAS.iter().find(|(name, _)| document["schema"] == *name) else {
        return vec![format!("there is no schema {}", document["schema"])];
    };
    let mut registry = jsonschema::Registry::new();
    for (_, text) in SCHEMAS {
        let schema = parse(text);
        let id = schema["$id"].as_str().unwrap().to_owned();
        registry = registry.add(id, schema).unwrap();
    }
    let registry = registry.prepare().unwrap();
    let options = jsonschema::draft202012::options();
    let options = options.with_registry(&registry).should_validate_formats(true);
    let validator = options.build(&parse(schema)).unwrap();
    validator
        .iter_errors(document)
        .map(|fault| format!("{}: {fault}", fault.instance_path()))
        .collect()
}
