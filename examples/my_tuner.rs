//! A third party's tuner: one file, found by its word in `peft_type`.
//!
//! `y = x W ⊙ (1 + s)`, with one learnt scale for each output of an adapted layer.
//!
//!     cargo run --release -p peft-examples --example my_tuner

use std::sync::Arc;

use burn::{
    module::Module,
    nn::{Linear, LinearConfig},
    tensor::{Device, Distribution, Tensor},
};
use peft::{
    BaseModel, DynTensor, Forward, Inputs, ModelInfo, ModuleKind, ModuleTree, Outputs, PeftConfig, PeftModel, PeftType,
    Plan, Result, Tuner, TunerPlugin, adapted_linear, inventory,
    plugins::{
        plan::{Adapted, TaskRules},
        tuner::{Init, LayerTuner, LinearCall, TensorSpec, Tensors},
    },
    tuners::select::{Rules, Targets},
};
use serde::{Deserialize, Serialize};

inventory::submit! { TunerPlugin::new::<OutputScale>("OUTPUT_SCALE", "one scale for each output") }

/// Options of the tuner: PEFT's target rules, and nothing else.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct OutputScale {
    #[serde(flatten)]
    targets: Targets,
}

impl Tuner for OutputScale {
    fn plan(&self, config: &PeftConfig, model: &ModuleTree, info: &ModelInfo, task: &TaskRules) -> Result<Plan> {
        let supported = &[ModuleKind::Linear];
        let rules =
            Rules { tuner: "OutputScale", supported, defaults: None, shorten: true, strict: !config.inference_mode };
        let selection = self.targets.select(model, info, task, rules)?;
        let layer = |(module, reason): &(String, String)| {
            let (_, d_out) = model.get(module)?.weight_dims()?;
            Some(Adapted { module: module.clone(), reason: reason.clone(), layer: Arc::new(Layer { d_out }) })
        };
        Ok(Plan {
            config: config.clone(),
            adapted: selection.adapted.iter().filter_map(layer).collect(),
            tokens: Vec::new(),
            skipped: selection.skipped,
            saved: selection.saved.modules,
            biases: Vec::new(),
            in_place: false,
            prompt: None,
            notes: selection.notes,
        })
    }
}

#[derive(Debug)]
struct Layer {
    d_out: usize,
}

impl LayerTuner for Layer {
    fn tensors(&self) -> Vec<TensorSpec> {
        vec![TensorSpec {
            name: "output_scale".into(),
            shape: vec![self.d_out],
            init: Init::Constant(0.0),
            trainable: true,
        }]
    }

    fn merged(&self, tensors: &Tensors<'_>, weight: DynTensor) -> DynTensor {
        let DynTensor::R2(weight) = weight else { return weight };
        DynTensor::R2(weight * tensors.get::<1>("output_scale").add_scalar(1.0).unsqueeze())
    }

    fn forward(&self, tensors: &Tensors<'_>, call: &LinearCall, output: Tensor<2>) -> Tensor<2> {
        let product = call.frozen(call.input.clone());
        output + product * tensors.get::<1>("output_scale").unsqueeze()
    }
}

#[derive(Module, Debug)]
struct Net {
    fc: Linear,
}

impl Forward for Net {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        let x = inputs.inputs_embeds.clone().expect("this model reads inputs_embeds");
        Outputs::new().with("fast", adapted_linear(&self.fc, x.clone())).with("slow", self.fc.forward(x))
    }
}

fn main() -> Result<()> {
    let device = Device::flex();
    let base = BaseModel::new(Box::new(Net { fc: LinearConfig::new(6, 4).init(&device) }), ModelInfo::custom());
    let config = PeftConfig::new(PeftType::new("OUTPUT_SCALE"), None)?.with("target_modules", "all-linear")?;
    let mut model = PeftModel::new(base, config, &device, 0)?;
    let x = Tensor::random([1, 3, 6], Distribution::Default, &device);
    let inputs = model.check(Inputs { inputs_embeds: Some(x), ..Inputs::default() })?.inputs;
    for _ in 0..3 {
        let loss = model.forward(&inputs)?.get::<3>("fast")?.square().mean();
        let gradients = model.gradients(&loss);
        model.step(&mut burn::optim::AdamWConfig::new().init(), 0.1, gradients);
    }
    let outputs = model.forward(&inputs)?;
    let tolerance = burn::tensor::Tolerance::default();
    outputs.get::<3>("fast")?.to_data().assert_approx_eq::<f32>(&outputs.get::<3>("slow")?.to_data(), tolerance);
    println!("{}", model.explanation()?.trainable_sentence());
    Ok(())
}

#[test]
fn it_runs() {
    main().unwrap();
}
