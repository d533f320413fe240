//! `engine-run generate --benchmark`: how fast tokens come, and how that compares with the bandwidth of memory.

use crate::generate::{GenerateArguments, sampling};
use crate::model::Loaded;
use crate::output::Output;
use anyhow::bail;
use engine::cpu::peak::read_bytes_per_second;
use engine::model::Transformer;
use engine::model::completion::encode_prompt;
use engine::model::generate::Generator;
use engine::ops::Device;
use serde_json::json;
use std::sync::Arc;
use std::time::Instant;

/// Tokens before the clock starts: they fault pages in and wake the threads.
const WARM_UP_TOKENS: usize = 4;
/// Tokens between two measurements of the bandwidth: a shared machine's is not the same from second to second.
const TOKENS_PER_BANDWIDTH: usize = 25;

pub fn benchmark(arguments: &GenerateArguments) -> anyhow::Result<()> {
    let folder = arguments.model.folder()?;
    let Loaded { model, mut parameters, device, description } = arguments.model.load(&folder)?;
    let config = model.config();
    let prompt = match arguments.prompt.as_slice() {
        [] => vec![0],
        [text] => encode_prompt(&arguments.model.tokenizer(&folder)?, config, text)?,
        _ => bail!("--benchmark takes one --prompt"),
    };
    let Device::Cpu(cpu) = &*device else {
        bail!("--benchmark compares with the bandwidth of this machine's memory; use --device cpu")
    };
    let batch = arguments.batch.unwrap_or(1);
    let sampling = sampling(arguments);
    let mut generator = Generator::with_capacity(Arc::clone(&device), &model, batch)?;
    let before = Instant::now();
    generator.add(&mut parameters, &prompt)?;
    let prompt_time = before.elapsed();
    for _ in 1..batch {
        generator.add_copy(&mut parameters, 0)?;
    }

    let mut step_seconds = Vec::with_capacity(arguments.max_tokens);
    let mut cached_tokens = 0;
    let mut draw = 0;
    let mut step = |generator: &mut Generator<'_>| -> anyhow::Result<f64> {
        let before = Instant::now();
        let tokens: Vec<u32> = (0..batch).map(|place| sampling.choose(generator.logits(place), place, draw)).collect();
        draw += 1;
        generator.push(&mut parameters, &tokens)?;
        Ok(before.elapsed().as_secs_f64())
    };
    for _ in 0..WARM_UP_TOKENS {
        step(&mut generator)?;
    }
    // What could have been read in the time that the steps took.
    let mut readable_bytes = 0.0;
    let mut bandwidth_before = read_bytes_per_second(cpu);
    while step_seconds.len() < arguments.max_tokens {
        let first = step_seconds.len();
        for _ in 0..TOKENS_PER_BANDWIDTH.min(arguments.max_tokens - first) {
            step_seconds.push(step(&mut generator)?);
            cached_tokens += generator.cached_tokens();
        }
        let bandwidth_after = read_bytes_per_second(cpu);
        readable_bytes += bandwidth_before.max(bandwidth_after) * step_seconds[first..].iter().sum::<f64>();
        bandwidth_before = bandwidth_after;
    }

    let total: f64 = step_seconds.iter().sum();
    let bandwidth = readable_bytes / total;
    step_seconds.sort_unstable_by(f64::total_cmp);
    let median = step_seconds[step_seconds.len() / 2];
    let steps_per_second = step_seconds.len() as f64 / total;
    let weight_bytes = weight_bytes_per_step(&model);
    let cache_bytes = (cached_tokens * 2 * config.channels * config.layers * 4) as f64 / step_seconds.len() as f64;
    // The weights alone: what decoding cannot do without, however short the text.
    let percent = 100.0 * steps_per_second * weight_bytes / bandwidth;
    let percent_with_cache = 100.0 * steps_per_second * (weight_bytes + cache_bytes) / bandwidth;
    let text = if arguments.json {
        json!({
            "device": description,
            "batch": batch,
            "prompt_tokens": prompt.len(),
            "prompt_seconds": prompt_time.as_secs_f64(),
            "generated_tokens": batch * step_seconds.len(),
            "tokens_per_second": batch as f64 * steps_per_second,
            "step_seconds_median": median,
            "weight_bytes_per_step": weight_bytes,
            "cache_bytes_per_step": cache_bytes,
            "read_bytes_per_second": bandwidth,
            "percent_of_bandwidth": percent,
            "percent_of_bandwidth_with_cache": percent_with_cache,
        })
        .to_string()
    } else {
        format!(
            "device     {description}\n\
             prompt     {} tokens in {:.1} ms\n\
             generated  {} tokens, {batch} at a time: {:.2} tokens/s, median step {:.2} ms\n\
             read       {:.1} MB of weights and {:.1} MB of the key/value cache each step\n\
             bandwidth  {:.1} GB/s measured: {percent:.1} % of what it allows for the weights alone, {percent_with_cache:.1} % with the cache",
            prompt.len(),
            prompt_time.as_secs_f64() * 1e3,
            batch * step_seconds.len(),
            batch as f64 * steps_per_second,
            median * 1e3,
            weight_bytes / 1e6,
            cache_bytes / 1e6,
            bandwidth / 1e9,
        )
    };
    let mut output = Output::default();
    let _ = output.print(&format!("{text}\n"));
    output.outcome()
}

/// Bytes of parameters that a step reads: all but the tables of which it takes a row.
fn weight_bytes_per_step(model: &Transformer) -> f64 {
    let is_table = |name: &str| match name {
        "position_embedding.weight" => true,
        "token_embedding.weight" => !model.config().tied,
        _ => false,
    };
    let read = model.specs().iter().filter(|spec| !is_table(&spec.name));
    4.0 * read.map(|spec| spec.elements()).sum::<usize>() as f64
}
