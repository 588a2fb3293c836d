//! Trains the bundled model: a seeded, resumable run on text that the grammar makes as it goes, so no text is seen
//! twice and a held-out loss near the true entropy means that the language was learned, not remembered.

use std::fmt;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use burn::backend::Flex;
use burn::tensor::ElementConversion;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn_autodiff::Autodiff;
use serde::{Deserialize, Serialize};
use tokenizers::Tokenizer;

mod adamw;
mod checkpoint;
mod network;
pub mod tokenizer;
pub mod weights;

use self::adamw::{Gradients, clip_norm};
use self::checkpoint::Checkpoint;
use self::network::Network;
use self::tokenizer::{BOS, EOS, encode, train_tokenizer};
use self::weights::{NetworkConfig, Weights};
use super::{Split, bundled_text};

/// Windows in the last sixth of a run are this many times as long as in its first half; in between, twice as long.
/// Short windows are cheaper and teach looking back sooner; the last ones teach the positions that evaluation uses.
const LONGEST: usize = 4;

/// What a training run can be asked for. Two runs with equal options give equal files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainOptions {
    /// Folder for the model, made where it is missing. A checkpoint found in it is continued.
    #[serde(skip)]
    pub out: PathBuf,
    /// Seed of the initial weights.
    pub seed: u64,
    /// Optimizer steps.
    pub n_steps: u32,
    /// Windows in a step while they are short; a multiple of 8.
    pub batch: usize,
    /// Tokens in a window in the first half of the run; they grow to four times as many.
    pub seq_len: usize,
    /// Highest learning rate, after the warm-up.
    pub peak_learning_rate: f64,
    /// Steps in which the learning rate rises from 0; it then falls along a cosine to a tenth of its peak.
    pub n_warm_up_steps: u32,
    /// Decoupled weight decay of the matrices.
    pub weight_decay: f64,
    /// Largest common norm of the gradients.
    pub max_gradient_norm: f64,
    /// Tokens in the vocabulary, at most.
    pub vocab_size: usize,
    /// Documents of [`Split::Train`] to which the tokenizer is fitted.
    pub n_tokenizer_documents: u32,
    /// Documents of [`Split::Test`] on which the loss is measured.
    pub n_held_out_documents: u32,
    /// Steps between checkpoints, each with a held-out loss.
    pub checkpoint_every: u32,
}

impl TrainOptions {
    /// The run that made the model in this repository.
    pub fn bundled(out: PathBuf) -> Self {
        TrainOptions {
            out,
            seed: 0,
            n_steps: 1500,
            batch: 16,
            seq_len: 128,
            peak_learning_rate: 3e-3,
            n_warm_up_steps: 100,
            weight_decay: 0.1,
            max_gradient_norm: 1.0,
            vocab_size: 2048,
            n_tokenizer_documents: 4000,
            n_held_out_documents: 32,
            checkpoint_every: 100,
        }
    }

    /// Windows and tokens in each, at `step`: as many tokens in every step, in ever longer windows.
    fn batch_shape(&self, step: u32) -> (usize, usize) {
        let longer = match 6 * step / self.n_steps {
            0..=2 => 1,
            3..=4 => 2,
            _ => LONGEST,
        };
        (self.batch / longer, longer * self.seq_len)
    }

    /// Learning rate of step `step`, counted from 0.
    fn learning_rate(&self, step: u32) -> f64 {
        if step < self.n_warm_up_steps {
            return self.peak_learning_rate * f64::from(step + 1) / f64::from(self.n_warm_up_steps);
        }
        let done = f64::from(step - self.n_warm_up_steps) / f64::from((self.n_steps - self.n_warm_up_steps).max(1));
        let falling = 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
        self.peak_learning_rate * (0.1 + 0.9 * falling)
    }
}

/// Mean loss on held-out documents, each seen from its start, beside the lowest possible one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldOut {
    /// Nats per token.
    pub loss: f64,
    /// True entropy of the same documents in nats per token.
    pub floor: f64,
    /// Tokens scored.
    pub n_tokens: usize,
}

/// A step of a run, as it happens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainProgress {
    /// Steps done.
    pub step: u32,
    /// Steps in all.
    pub n_steps: u32,
    /// Loss of this step, nats per token.
    pub loss: f64,
    /// Norm of the gradients before clipping.
    pub gradient_norm: f64,
    /// Seconds since the run began or went on.
    pub seconds: f64,
    /// Where this step ended with a checkpoint.
    pub held_out: Option<HeldOut>,
}

impl fmt::Display for HeldOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let HeldOut { loss, floor, n_tokens } = self;
        let (perplexity, lowest) = (loss.exp(), floor.exp());
        write!(f, "held-out loss {loss:.4} (entropy {floor:.4}), perplexity {perplexity:.3} (lowest {lowest:.3}), ")?;
        write!(f, "{n_tokens} tokens")
    }
}

impl fmt::Display for TrainProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TrainProgress { step, n_steps, loss, gradient_norm, seconds, .. } = self;
        write!(f, "step {step}/{n_steps}: loss {loss:.4}, gradient norm {gradient_norm:.2}, {seconds:.0} s")?;
        self.held_out.map_or(Ok(()), |held_out| write!(f, "; {held_out}"))
    }
}

/// What a finished run says about itself; stored as `train_report.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainReport {
    /// How the run was set up.
    pub options: TrainOptions,
    /// Parameters; the tied head counts once.
    pub n_parameters: usize,
    /// Tokens trained on.
    pub n_tokens: u64,
    /// Mean loss of the last 50 steps, nats per token of windows, half of which begin in mid-document.
    pub train_loss: f64,
    /// At the end, in f16 as stored.
    pub held_out: HeldOut,
    /// Time of all parts of the run together.
    pub wall_seconds: f64,
}

/// Trains on the CPU and writes `config.json`, `tokenizer.json`, `model.safetensors` and `train_report.json` into
/// `options.out`. An interrupted run leaves `checkpoint.safetensors` there, from which the same options go on to the
/// same result.
///
/// # Errors
/// Where the folder cannot be written, or holds a checkpoint of other options.
pub fn train(options: &TrainOptions, progress: &mut dyn FnMut(TrainProgress)) -> anyhow::Result<TrainReport> {
    train_on::<Autodiff<Flex>>(options, &Default::default(), progress)
}

fn train_on<B: AutodiffBackend>(
    options: &TrainOptions,
    device: &B::Device,
    progress: &mut dyn FnMut(TrainProgress),
) -> anyhow::Result<TrainReport> {
    anyhow::ensure!(
        options.batch > 0 && options.batch.is_multiple_of(8),
        "batch is {}; take a multiple of 8",
        options.batch
    );
    anyhow::ensure!(options.n_steps > 0, "a run needs at least one step");
    std::fs::create_dir_all(&options.out).with_context(|| format!("making {}", options.out.display()))?;
    let tokenizer = train_tokenizer(&bundled_text(Split::Train, options.n_tokenizer_documents), options.vocab_size)?;
    let special = |token: &str| tokenizer.token_to_id(token).with_context(|| format!("the tokenizer lacks {token}"));
    let (bos, eos) = (special(BOS)?, special(EOS)?);
    let config = NetworkConfig::bundled(tokenizer.get_vocab_size(true), LONGEST * options.seq_len, bos, eos);
    let mut run = match Checkpoint::load(options)? {
        Some(checkpoint) => checkpoint,
        None => Checkpoint::begin(Weights::initial(config, options.seed)),
    };
    let text = HeldOutText::new(&tokenizer, bos, options.n_held_out_documents)?;
    let (began, seconds_before) = (Instant::now(), run.wall_seconds);

    while run.step < options.n_steps {
        let (batch, seq_len) = options.batch_shape(run.step);
        let (ids, targets) = take_batch(&tokenizer, bos, &mut run.next_document, batch, seq_len)?;
        let (loss, mut gradients) = loss_and_gradients::<B>(&run.weights, &ids, &targets, seq_len, device)?;
        anyhow::ensure!(loss.is_finite(), "the loss became {loss} at step {}; lower the learning rate", run.step);
        let gradient_norm = clip_norm(&mut gradients, options.max_gradient_norm);
        let learning_rate = options.learning_rate(run.step) as f32;
        run.optimizer.step(&mut run.weights.tensors, &gradients, learning_rate, options.weight_decay as f32);
        run.step += 1;
        run.n_tokens += targets.len() as u64;
        run.losses.push(loss);

        let seconds = began.elapsed().as_secs_f64();
        let mut held_out = None;
        if run.step.is_multiple_of(options.checkpoint_every) {
            run.wall_seconds = seconds_before + seconds;
            run.save(options)?;
            held_out = Some(text.score::<B::InnerBackend>(&run.weights, device)?);
        }
        progress(TrainProgress { step: run.step, n_steps: options.n_steps, loss, gradient_norm, seconds, held_out });
    }

    run.wall_seconds = seconds_before + began.elapsed().as_secs_f64();
    finish::<B::InnerBackend>(options, &run, &tokenizer, &text, device)
}

/// Writes the finished model, measures it as stored, reports, and removes the checkpoint.
fn finish<B: Backend>(
    options: &TrainOptions,
    run: &Checkpoint,
    tokenizer: &Tokenizer,
    text: &HeldOutText,
    device: &B::Device,
) -> anyhow::Result<TrainReport> {
    run.weights.save(&options.out)?;
    let tokenizer_path = options.out.join("tokenizer.json");
    tokenizer
        .save(&tokenizer_path, true)
        .map_err(|error| anyhow::anyhow!(error))
        .with_context(|| format!("writing {}", tokenizer_path.display()))?;
    let last = &run.losses[run.losses.len().saturating_sub(50)..];
    let report = TrainReport {
        options: options.clone(),
        n_parameters: run.weights.n_parameters(),
        n_tokens: run.n_tokens,
        train_loss: last.iter().sum::<f64>() / last.len() as f64,
        held_out: text.score::<B>(&Weights::load(&options.out)?, device)?,
        wall_seconds: run.wall_seconds,
    };
    let report_path = options.out.join("train_report.json");
    std::fs::write(&report_path, serde_json::to_string_pretty(&report)? + "\n")
        .with_context(|| format!("writing {}", report_path.display()))?;
    Checkpoint::remove(options)?;
    Ok(report)
}

/// Inputs and targets of `batch` windows, from training documents on. Of each pair of windows the first begins a
/// document after [`BOS`] and the second continues where the first ended, in mid-document, as evaluation windows do.
fn take_batch(
    tokenizer: &Tokenizer,
    bos: u32,
    next_document: &mut u32,
    batch: usize,
    seq_len: usize,
) -> anyhow::Result<(Vec<u32>, Vec<u32>)> {
    let (mut ids, mut targets) = (Vec::new(), Vec::new());
    for _ in 0..batch / 2 {
        let mut tokens = vec![bos];
        while tokens.len() <= 2 * seq_len {
            let text = Split::Train.document(*next_document).text + "\n";
            tokens.extend(encode(tokenizer, &text)?);
            *next_document += 1;
        }
        ids.extend(&tokens[..2 * seq_len]);
        targets.extend(&tokens[1..2 * seq_len + 1]);
    }
    Ok((ids, targets))
}

/// Mean loss over all targets, and its gradients.
fn loss_and_gradients<B: AutodiffBackend>(
    weights: &Weights,
    ids: &[u32],
    targets: &[u32],
    seq_len: usize,
    device: &B::Device,
) -> anyhow::Result<(f64, Gradients)> {
    let network = Network::<B>::new(weights, device).trainable();
    let loss = network.nll(ids, targets, seq_len).mean();
    let mut of_tensors = loss.backward();
    let gradients = network
        .tensors
        .iter()
        .map(|(name, tensor)| {
            let gradient = tensor.grad_remove(&mut of_tensors).with_context(|| format!("{name} has no gradient"))?;
            let values = gradient.into_data().to_vec::<f32>().map_err(|error| anyhow::anyhow!("{name}: {error:?}"))?;
            Ok((name.clone(), values))
        })
        .collect::<anyhow::Result<Gradients>>()?;
    Ok((loss.into_scalar().elem::<f64>(), gradients))
}

/// Held-out documents as tokens, and their entropy.
pub(super) struct HeldOutText {
    /// Each begins with [`BOS`] and ends with the line feed.
    documents: Vec<Vec<u32>>,
    nats: f64,
}

impl HeldOutText {
    pub(super) fn new(tokenizer: &Tokenizer, bos: u32, n_documents: u32) -> anyhow::Result<Self> {
        let mut text = HeldOutText { documents: Vec::new(), nats: 0.0 };
        for document_idx in 0..n_documents {
            let document = Split::Test.document(document_idx);
            let mut ids = vec![bos];
            ids.extend(encode(tokenizer, &(document.text + "\n"))?);
            text.documents.push(ids);
            text.nats += document.nats;
        }
        Ok(text)
    }

    /// Loss of `weights` on every document alone.
    pub(super) fn score<B: Backend>(&self, weights: &Weights, device: &B::Device) -> anyhow::Result<HeldOut> {
        let network = Network::<B>::new(weights, device);
        let (mut nll, mut n_tokens) = (0.0, 0);
        for ids in &self.documents {
            let n = ids.len() - 1;
            nll += network.nll(&ids[..n], &ids[1..], n).sum().into_scalar().elem::<f64>();
            n_tokens += n;
        }
        Ok(HeldOut { loss: nll / n_tokens as f64, floor: self.nats / n_tokens as f64, n_tokens })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use super::*;

    fn short(out: &Path, n_steps: u32) -> TrainOptions {
        TrainOptions {
            n_steps,
            batch: 8,
            seq_len: 16,
            n_warm_up_steps: 5,
            vocab_size: 400,
            n_tokenizer_documents: 50,
            n_held_out_documents: 2,
            checkpoint_every: 8,
            ..TrainOptions::bundled(out.to_owned())
        }
    }

    fn run(options: &TrainOptions) -> (TrainReport, Vec<TrainProgress>) {
        let mut steps = Vec::new();
        let report = train(options, &mut |progress| steps.push(progress)).unwrap();
        (report, steps)
    }

    /// Along its own gradient, every tensor changes the loss as fast as the gradient is long.
    #[test]
    fn gradients_agree_with_finite_differences() {
        let mut config = NetworkConfig::bundled(40, 32, 0, 1);
        config.num_hidden_layers = 2;
        let weights = Weights::initial(config, 3);
        let device = Default::default();
        let ids: Vec<u32> = (0..64).map(|i| (i * i + 7 * i) % 40).collect();
        let (inputs, targets) = (&ids[..32], &ids[32..]);
        let loss_of = |weights: &Weights| {
            let nll = Network::<Flex>::new(weights, &device).nll(inputs, targets, 16);
            nll.into_data().iter::<f64>().sum::<f64>() / 32.0
        };
        let (loss, gradients) = loss_and_gradients::<Autodiff<Flex>>(&weights, inputs, targets, 16, &device).unwrap();
        assert!((loss - loss_of(&weights)).abs() < 1e-5);
        for (name, gradient) in &gradients {
            let length = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
            let moved = |distance: f64| {
                let mut weights = weights.clone();
                let values = &mut weights.tensors.get_mut(name).unwrap().values;
                for (w, g) in values.iter_mut().zip(gradient) {
                    *w += (distance * f64::from(*g) / length) as f32;
                }
                loss_of(&weights)
            };
            let slope = (moved(0.02) - moved(-0.02)) / 0.04;
            assert!((slope / length - 1.0).abs() < 0.02, "{name}: slope {slope}, gradient {length}");
        }
    }

    #[test]
    fn twenty_steps_lower_the_loss_and_repeat_exactly() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let runs = dirs.each_ref().map(|dir| run(&short(dir.path(), 20)));
        let [(report, steps), (_, again)] = &runs;
        assert!(steps[0].loss > steps[19].loss + 0.5, "{} to {}", steps[0].loss, steps[19].loss);
        assert!(report.held_out.loss > report.held_out.floor);
        let losses = |steps: &[TrainProgress]| steps.iter().map(|step| step.loss).collect::<Vec<_>>();
        assert_eq!(losses(steps), losses(again));
        for name in ["config.json", "tokenizer.json", "model.safetensors"] {
            let [a, b] = dirs.each_ref().map(|dir| std::fs::read(dir.path().join(name)).unwrap());
            assert!(a == b, "{name} differs between two equal runs");
        }
    }

    #[test]
    fn an_interrupted_run_goes_on_to_the_same_model() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let whole = run(&short(dirs[0].path(), 20)).0;
        // Stop in the middle: as a kill does, without any clean-up.
        let options = short(dirs[1].path(), 20);
        let stopped = std::panic::catch_unwind(|| {
            train(&options, &mut |progress| assert!(progress.step < 13, "stop here")).map(drop).unwrap();
        });
        assert!(stopped.is_err());
        let (resumed, steps) = run(&options);
        assert_eq!(steps[0].step, 9);
        assert_eq!(Weights::load(dirs[0].path()).unwrap(), Weights::load(dirs[1].path()).unwrap());
        assert_eq!((whole.n_tokens, whole.train_loss), (resumed.n_tokens, resumed.train_loss));
        assert!(!options.out.join("checkpoint.safetensors").exists());
    }

    #[test]
    fn a_checkpoint_of_other_options_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let options = short(dir.path(), 20);
        let _ = std::panic::catch_unwind(|| train(&options, &mut |progress| assert!(progress.step < 9)).map(drop));
        let other = TrainOptions { seed: 1, ..options };
        let error = format!("{:#}", train(&other, &mut |_| {}).unwrap_err());
        assert!(error.contains("checkpoint.safetensors") && error.contains("other options"), "{error}");
    }

    #[test]
    fn learning_rate_rises_then_falls() {
        let options = TrainOptions::bundled(PathBuf::new());
        let rates: Vec<_> = [0, 99, 100, 800, 1499].map(|step| options.learning_rate(step)).into();
        assert!((rates[0] - 3e-5).abs() < 1e-12 && rates[1] == 3e-3 && rates[2] == 3e-3, "{rates:?}");
        assert!(rates[3] < rates[2] && rates[3] > rates[4], "{rates:?}");
        assert!((rates[4] - 3e-4).abs() < 1e-6, "{rates:?}");
    }

    #[test]
    fn windows_grow_and_steps_keep_their_tokens() {
        let options = TrainOptions::bundled(PathBuf::new());
        let shapes = [0, 749, 750, 1249, 1250, 1499].map(|step| options.batch_shape(step));
        assert_eq!(shapes, [(16, 128), (16, 128), (8, 256), (8, 256), (4, 512), (4, 512)]);
    }

    #[test]
    fn windows_follow_each_other_and_begin_at_documents() {
        let tokenizer = train_tokenizer(&bundled_text(Split::Train, 50), 400).unwrap();
        let mut next_document = 3;
        let (ids, targets) = take_batch(&tokenizer, 0, &mut next_document, 4, 16).unwrap();
        assert_eq!((ids.len(), targets.len()), (64, 64));
        let text = Split::Train.document(3).text;
        assert!(text.starts_with(&tokenizer.decode(&ids[1..32], false).unwrap()));
        assert_eq!(ids[1..32], targets[..31]);
        assert_eq!((ids[0], ids[32]), (0, 0));
        assert_eq!(next_document, 5);
    }
}
