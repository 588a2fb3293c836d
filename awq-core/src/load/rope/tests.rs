#![allow(clippy::unwrap_used)]
use std::path::Path;

use serde_json::json;

use super::*;

fn parse_of(model_type: &str, json: &Json) -> Result<(Rope, Option<Rope>), LoadError> {
    let class = crate::model::classes().find(|class| class.model_type == model_type).unwrap();
    Rope::from_hugging_face(&Keys { file: Path::new("config.json"), json }, class, 128)
}

fn parse(json: &Json) -> Result<Rope, LoadError> {
    parse_of("llama", json).map(|(rope, _)| rope)
}

#[track_caller]
fn check_error(json: &Json, expected: &str) {
    let message = parse(json).err().unwrap().to_string();
    assert!(message.starts_with("config.json: key "), "{message}");
    assert!(message.contains(expected), "{message}");
}

fn llama3() -> Json {
    json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192
    })
}

#[test]
fn keys_read_in_both_places() {
    let linear = parse(&json!({"rope_scaling": {"type": "linear", "factor": 2.0}})).unwrap();
    assert_eq!(linear.scaling, Some(RopeScaling::Linear { factor: 2.0 }));
    assert_eq!(linear.theta, DEFAULT_ROPE_THETA);

    let old = parse(&json!({"rope_theta": 5e5, "rope_scaling": llama3()})).unwrap();
    let mut inner = llama3();
    inner["rope_theta"] = json!(5e5);
    let new = parse(&json!({"rope_parameters": inner})).unwrap();
    assert_eq!((new.scaling, new.theta), (old.scaling, old.theta));

    let plain = parse(&json!({"rope_scaling": null, "rope_theta": 7.0})).unwrap();
    assert_eq!((plain.scaling, plain.theta), (None, 7.0));
}

#[test]
fn bad_values_are_named() {
    let with = |key: &str, value: Json| {
        let mut scaling = llama3();
        scaling[key] = value;
        json!({"rope_scaling": scaling})
    };
    check_error(
        &with("rope_type", json!("ntk")),
        "\"ntk\", expected one of default, linear, dynamic, llama3, yarn, longrope",
    );
    check_error(&with("high_freq_factor", Json::Null), "key \"high_freq_factor\" is missing");
    check_error(&with("low_freq_factor", json!(4.0)), "4, expected less than high_freq_factor, 4");
    check_error(&with("factor", json!(-2.0)), "-2.0, expected a positive number");
    check_error(&json!({"rope_scaling": 2}), "2, expected an object");
}

#[test]
fn frequencies_are_those_of_transformers() {
    let short = [1.0, 1.1, 1.3, 1.5, 2.0, 2.5, 3.0, 4.0];
    let yarn = |rest: Json| {
        let mut keys = json!({
            "rope_type": "yarn", "factor": 4.0, "beta_fast": 8.0, "beta_slow": 1.0,
            "original_max_position_embeddings": 128
        });
        keys.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        keys
    };
    let long_rope = json!({
        "rope_type": "longrope", "factor": 4.0, "short_factor": short, "long_factor": short,
        "original_max_position_embeddings": 16
    });
    // Heads of 16 channels, base 500 and 64 positions; `ROPE_INIT_FUNCTIONS` of transformers 5.24.0.
    for (keys, expected, amplitude) in [
        (
            json!({ "rope_type": "linear", "factor": 2.5 }),
            [0.400_000_01, 0.183_945_31, 0.084_589_697, 0.001_739_647_5],
            1.0,
        ),
        (json!({ "rope_type": "dynamic", "factor": 4.0 }), [1.0, 0.459_863_28, 0.211_474_24, 0.004_349_118_6], 1.0),
        (yarn(json!({})), [1.0, 0.459_863_28, 0.158_605_68, 0.001_087_279_6], 1.138_629_436_111_989),
        (
            yarn(json!({ "truncate": false, "mscale": 0.7, "mscale_all_dim": 0.4 })),
            [1.0, 0.459_863_28, 0.164_265_68, 0.001_087_279_6],
            1.039_403_819_142_256_8,
        ),
        (
            json!({ "rope_type": "yarn", "factor": 4.0, "attention_factor": 0.9, "original_max_position_embeddings": 16 }),
            [1.0, 0.287_414_55, 0.052_868_56, 0.001_087_279_6],
            0.9,
        ),
        (long_rope.clone(), [1.0, 0.418_057_5, 0.162_672_49, 0.001_087_279_6], 1.224_744_871_391_589),
    ] {
        let json = json!({ "max_position_embeddings": 64, "rope_theta": 500.0, "rope_scaling": keys });
        let rope = Rope { n_channels: 16, ..parse(&json).unwrap() };
        let found = rope.frequencies();
        for (pair, expected) in [0, 1, 2, 7].into_iter().zip(expected) {
            assert!((found[pair] / expected - 1.0).abs() < 2e-7, "{keys}: pair {pair} has {}", found[pair]);
        }
        // Cosines of position 0.
        let (cos, _) = rope.angles(0..1);
        assert!(cos.iter().all(|cos| (f64::from(*cos) - amplitude).abs() < 1e-6), "{keys}: {cos:?}");
    }
    // Without a factor it follows from the positions.
    let mut keys = long_rope;
    keys["factor"] = Json::Null;
    let json = json!({ "max_position_embeddings": 64, "rope_scaling": keys });
    let Some(RopeScaling::LongRope { amplitude, .. }) = parse(&json).unwrap().scaling else { panic!("{json}") };
    assert!((amplitude - 1.224_744_871_391_589).abs() < 1e-12);
}

#[test]
fn a_stretch_that_lacks_a_key_is_refused() {
    check_error(&json!({"rope_scaling": {"rope_type": "dynamic"}}), "key \"factor\" is missing");
    let short = json!({"rope_type": "longrope", "short_factor": [1.0]});
    check_error(
        &json!({"max_position_embeddings": 64, "rope_scaling": short}),
        "\"rope_scaling.long_factor\" is missing",
    );
    let damaged = json!({"rope_type": "longrope", "short_factor": [0.0], "long_factor": [1.0]});
    check_error(
        &json!({"max_position_embeddings": 64, "rope_scaling": damaged}),
        "\"rope_scaling.short_factor\": [0.0], expected a list of positive numbers",
    );
}

/// As `Gemma3TextConfig` reads files of transformers 4 and 5.
#[test]
fn blocks_with_a_window_may_have_a_base_of_their_own() {
    let linear = json!({ "rope_type": "linear", "factor": 8.0 });
    let new = json!({
        "full_attention": { "rope_type": "linear", "factor": 8.0, "rope_theta": 5e5 },
        "sliding_attention": { "rope_type": "default", "rope_theta": 2e4 }
    });
    for (json, theta, factor, local_theta) in [
        (json!({}), 1e6, None, 1e4),
        (json!({ "rope_theta": 5e5, "rope_scaling": linear, "rope_local_base_freq": 2e4 }), 5e5, Some(8.0), 2e4),
        (json!({ "rope_parameters": new }), 5e5, Some(8.0), 2e4),
        (json!({ "rope_parameters": { "full_attention": null } }), 1e6, None, 1e4),
    ] {
        let (rope, local) = parse_of("gemma3_text", &json).unwrap();
        let scaling = factor.map(|factor| RopeScaling::Linear { factor });
        assert_eq!(rope, Rope { theta, scaling, n_channels: 128 }, "{json}");
        assert_eq!(local, Some(Rope { theta: local_theta, scaling: None, n_channels: 128 }), "{json}");
    }
    let flat = json!({ "rope_parameters": { "rope_type": "default", "rope_theta": 5e5 } });
    let message = parse_of("gemma3_text", &flat).err().unwrap().to_string();
    let expected = "500000.0: expected full_attention and sliding_attention alone, each with its own keys";
    assert!(message.ends_with(expected), "{message}");
    let nested = json!({ "rope_parameters": { "full_attention": { "rope_type": "default" } } });
    check_error(&nested, "rotary positions that differ by the type of a layer are not supported");
}

/// As GPTQModel saves them: what both kinds have stands beside them as well.
#[test]
fn bases_that_stand_beside_the_kinds_must_be_theirs() {
    let parameters = json!({
        "full_attention": { "rope_type": "default", "rope_theta": 1e6 },
        "sliding_attention": { "rope_type": "default", "rope_theta": 2e4 },
        "rope_theta": { "global": 1e6, "local": 2e4 },
        "rope_type": "default"
    });
    let (rope, local) = parse_of("gemma3_text", &json!({ "rope_parameters": parameters })).unwrap();
    assert_eq!((rope.theta, local.map(|local| local.theta)), (1e6, Some(2e4)));
    for (key, value) in [
        ("rope_theta", json!({ "global": 1e6, "local": 1e4 })),
        ("rope_theta", json!({ "global": 1e6 })),
        ("rope_theta", json!(1e6)),
        ("rope_type", json!("linear")),
        ("factor", json!(8.0)),
    ] {
        let mut parameters = parameters.clone();
        parameters[key] = value.clone();
        let message = parse_of("gemma3_text", &json!({ "rope_parameters": parameters })).err().unwrap().to_string();
        assert!(
            message.contains(&format!("\"rope_parameters.{key}\": {value}: expected full_attention and")),
            "{message}"
        );
    }
}

#[test]
fn llama3_keeps_high_frequencies_and_stretches_low_ones() {
    let rope = parse(&json!({"rope_scaling": llama3()})).unwrap();
    let scaling = rope.scaling.clone().unwrap();
    for pair in 0..64 {
        let plain = 5e5_f64.powf(-f64::from(pair) / 64.0);
        let wavelength = 2.0 * PI / plain;
        let expected = if wavelength < 8192.0 / 4.0 {
            plain
        } else if wavelength > 8192.0 / 1.0 {
            plain / 8.0
        } else {
            // The interpolation as Meta's code writes it.
            let smooth = (8192.0 / wavelength - 1.0) / (4.0 - 1.0);
            (1.0 - smooth) * plain / 8.0 + smooth * plain
        };
        let scaled = scaling.apply(&rope, plain, pair as usize);
        assert!((scaled - expected).abs() <= 1e-15, "{plain}: {scaled} {expected}");
    }
}
