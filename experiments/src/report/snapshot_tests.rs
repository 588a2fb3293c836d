//! What people read: the table of a small experiment in a terminal, on a page and in a paper.
#![allow(clippy::unwrap_used)]

use super::tests::{plan, records, references, rows};
use super::*;

#[test]
fn terminal_snapshot() {
    let table = terminal_table(&plan(&records(), references()), &records(), &[]).unwrap();
    let table_width = table.lines().map(|line| line.chars().count()).max().unwrap();
    assert!(table_width <= 120, "{table_width} columns");
    insta::assert_snapshot!(table, @r#"
    Does AWQ beat RTN at 3 bit?

    ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━
    method  grid     bits/w        perplexity   ln ratio to FP [95% CI]    ln ratio to RTN [95% CI]   paper  ours - paper
    ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
    FP      -         16.00  12.165 ± 0.621                           -                           -  12.000        +0.165
    ╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌
    RTN     W4 g128    4.16  12.799 ± 0.653    +0.0508 [0.0464, 0.0552]                           -       -             -
    AWQ     W4 g128    4.16  12.541 ± 0.640 *  +0.0305 [0.0278, 0.0331]  -0.0203 [-0.0221, -0.0186]       -             -
    ╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌
    RTN     W3 g64     3.30  16.501 ± 0.861    +0.3049 [0.2783, 0.3314]                           -       -             -
    AWQ     W3 g64     3.30  13.742 ± 0.703 *  +0.1219 [0.1113, 0.1326]  -0.1829 [-0.1988, -0.1670]  14.500        -0.758
    ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━
    LIMITED RUN: first 12 of 1,292 windows of wikitext2-test. Tiny_1M on wikitext2-test: perplexity per token,
    protocol gptq (non-overlapping windows of 256 tokens, all but the first token of each scored); 12 windows,
    3,060 tokens scored. ± is the standard error. Brackets are 95% intervals, ratios paired over windows:
    stationary bootstrap of 12 windows in blocks of 1.0 on average (length by Politis and White). An ln ratio is
    ln of the perplexity over that of full precision (FP) or RTN, in nats per token: 0.01 is about 1%. The base
    model is stored in BF16. Bits per weight count scales and zero points. Commit 0123456 (dirty). *: not worse
    than the best on its grid, beyond the paired 95% interval.
    Paper: A paper, table 4.
    Published but not measured here: Tiny_1M QuIP W2 g64.

    Failed cells:
      Tiny_1M RTN W2 g64: quantize failed: block 3, self_attn.q_proj: NaN | retry
    "#);
}

#[test]
fn markdown_snapshot() {
    let rows = rows(&records(), &[]);
    let records = records();
    insta::assert_snapshot!(markdown::render(&document(&plan(&records, vec![]), &rows, &frame::newest(&records), &[])), @r#"
    # Does AWQ beat RTN at 3 bit?

    | method | grid | bits/w | perplexity | ln ratio to FP [95% CI] | ln ratio to RTN [95% CI] |
    | :-- | :-- | --: | --: | --: | --: |
    | FP | - | 16.00 | 12.165 ± 0.621 | - | - |
    | RTN | W4 g128 | 4.16 | 12.799 ± 0.653 | +0.0508 [0.0464, 0.0552] | - |
    | AWQ | W4 g128 | 4.16 | **12.541 ± 0.640** | +0.0305 [0.0278, 0.0331] | -0.0203 [-0.0221, -0.0186] |
    | RTN | W3 g64 | 3.30 | 16.501 ± 0.861 | +0.3049 [0.2783, 0.3314] | - |
    | AWQ | W3 g64 | 3.30 | **13.742 ± 0.703** | +0.1219 [0.1113, 0.1326] | -0.1829 [-0.1988, -0.1670] |

    LIMITED RUN: first 12 of 1,292 windows of wikitext2-test. Tiny\_1M on wikitext2-test: perplexity per token, protocol gptq (non-overlapping windows of 256 tokens, all but the first token of each scored); 12 windows, 3,060 tokens scored. ± is the standard error. Brackets are 95% intervals, ratios paired over windows: stationary bootstrap of 12 windows in blocks of 1.0 on average (length by Politis and White). An ln ratio is ln of the perplexity over that of full precision (FP) or RTN, in nats per token: 0.01 is about 1%. The base model is stored in BF16. Bits per weight count scales and zero points. Commit 0123456 (dirty). Bold: not worse than the best on its grid, beyond the paired 95% interval.

    ## Failed cells

    - Tiny\_1M RTN W2 g64: quantize failed: block 3, self\_attn.q\_proj: NaN \| retry
    "#);
}

#[test]
fn latex_snapshot() {
    let rows = rows(&records(), &references());
    let records = records();
    insta::assert_snapshot!(latex::render(&document(&plan(&records, references()), &rows, &frame::newest(&records), &[])), @r#"
    % Generated from records.jsonl; do not edit. Needs \usepackage{booktabs}.
    % Does AWQ beat RTN at 3 bit?
    \begin{table}[t]
    \centering
    \caption{LIMITED RUN: first 12 of 1,292 windows of wikitext2-test. Tiny\_1M on wikitext2-test: perplexity per token, protocol gptq (non-overlapping windows of 256 tokens, all but the first token of each scored); 12 windows, 3,060 tokens scored. $\pm$ is the standard error. Brackets are 95\% intervals, ratios paired over windows: stationary bootstrap of 12 windows in blocks of 1.0 on average (length by Politis and White). An ln ratio is ln of the perplexity over that of full precision (FP) or RTN, in nats per token: 0.01 is about 1\%. The base model is stored in BF16. Bits per weight count scales and zero points. Commit 0123456 (dirty). Bold: not worse than the best on its grid, beyond the paired 95\% interval. Paper: A paper, table 4. Published but not measured here: Tiny\_1M QuIP W2 g64.}
    \label{tab:tiny-1m-wikitext2-test-gptq-256}
    \begin{tabular}{llrrrrrr}
      \toprule
      method & grid & bits/w & perplexity & ln ratio to FP [95\% CI] & ln ratio to RTN [95\% CI] & paper & ours - paper \\
      \midrule
      FP & - & 16.00 & 12.165 $\pm$ 0.621 & - & - & 12.000 & +0.165 \\
      \midrule
      RTN & W4 g128 & 4.16 & 12.799 $\pm$ 0.653 & +0.0508 [0.0464, 0.0552] & - & - & - \\
      AWQ & W4 g128 & 4.16 & \textbf{12.541 $\pm$ 0.640} & +0.0305 [0.0278, 0.0331] & $-$0.0203 [$-$0.0221, $-$0.0186] & - & - \\
      \midrule
      RTN & W3 g64 & 3.30 & 16.501 $\pm$ 0.861 & +0.3049 [0.2783, 0.3314] & - & - & - \\
      AWQ & W3 g64 & 3.30 & \textbf{13.742 $\pm$ 0.703} & +0.1219 [0.1113, 0.1326] & $-$0.1829 [$-$0.1988, $-$0.1670] & 14.500 & $-$0.758 \\
      \bottomrule
    \end{tabular}
    \end{table}
    % FAILED Tiny_1M RTN W2 g64: quantize failed: block 3, self_attn.q_proj: NaN | retry
    "#);
}
