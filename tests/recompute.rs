//! Activation checkpointing: layers that run again give the gradients that they would have given anyway.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use burn::tensor::{Device, Int, Tensor, TensorData};
use peft::{
    Adapter, CheckedBatch, DynModule, DynTensor, PeftConfig, PeftModel,
    adapter::{AdapterFolder, Role},
    model::peft_model::DEFAULT_ADAPTER,
    plugins::tuner::{LayerTuner, LinearCall, TensorSpec, Tensors},
};
use rstest::rstest;

use crate::fixture::{base_of, batch_on, floats};

/// What the adapted layers of a model were given, in the order in which they ran: whether it was part of a graph.
type Calls = Arc<Mutex<Vec<bool>>>;

/// A layer's tuner that notes when it runs.
#[derive(Debug)]
struct Spy {
    inner: Arc<dyn LayerTuner>,
    calls: Calls,
}

impl LayerTuner for Spy {
    fn tensors(&self) -> Vec<TensorSpec> {
        self.inner.tensors()
    }

    fn merged(&self, tensors: &Tensors<'_>, weight: DynTensor) -> DynTensor {
        self.inner.merged(tensors, weight)
    }

    fn forward(&self, tensors: &Tensors<'_>, call: &LinearCall, output: Tensor<2>) -> Tensor<2> {
        self.calls.lock().unwrap().push(call.input.is_autodiff());
        self.inner.forward(tensors, call, output)
    }

    fn embed(
        &self,
        tensors: &Tensors<'_>,
        weight: &peft::FrozenWeight,
        ids: Tensor<2, Int>,
        output: Tensor<3>,
    ) -> Tensor<3> {
        self.inner.embed(tensors, weight, ids, output)
    }
}

/// A case's model in training, with a fresh adapter that changes something and drops a lot.
pub(crate) struct Run {
    model: PeftModel,
    adapter: Adapter,
    module: Box<dyn DynModule>,
    calls: Calls,
    batch: CheckedBatch,
}

impl Run {
    fn new(case: &Path, change: impl FnOnce(&mut PeftConfig)) -> Self {
        Self::on(&Device::flex(), case, change)
    }

    pub(crate) fn on(device: &Device, case: &Path, change: impl FnOnce(&mut PeftConfig)) -> Self {
        let mut config = AdapterFolder::read(&case.join("adapter")).unwrap().config;
        config.options.insert("lora_dropout".to_owned(), 0.3.into());
        config.options.insert("init_lora_weights".to_owned(), false.into());
        change(&mut config);
        let mut model = PeftModel::from_base(base_of(case, &config, device), device);
        model.add_adapter(DEFAULT_ADAPTER, config, 7).unwrap();
        let mut adapter = model.adapter(DEFAULT_ADAPTER).unwrap().clone();
        let calls = Calls::default();
        for tensor in &mut adapter.tensors {
            if let Role::Tuned(inner) = &tensor.role {
                tensor.role = Role::Tuned(Arc::new(Spy { inner: Arc::clone(inner), calls: Arc::clone(&calls) }));
            }
        }
        let base = model.base();
        let module = base.module.attach(
            &|path| base.info.rename(path),
            &base.quantized,
            &[(DEFAULT_ADAPTER, &adapter)],
            &peft::Acting::Together,
        );
        model.set_active(&[DEFAULT_ADAPTER]).unwrap();
        let batch = model.check(batch_on(case, device)).unwrap();
        Self { model, adapter, module: module.set_training(true), calls, batch }
    }

    /// The loss and the gradients with so many layers that keep nothing, and how often adapted layers ran.
    pub(crate) fn gradients(&self, checkpointed: usize) -> (TensorData, BTreeMap<String, TensorData>, usize) {
        Device::flex().seed(5);
        self.calls.lock().unwrap().clear();
        let inputs = self.model.prepare(&self.batch.inputs).with_checkpointed_layers(checkpointed);
        let outputs = self.module.forward(&inputs);
        let loss = match self.model.task().unwrap() {
            Some(task) if !self.batch.labels.is_empty() => {
                self.model.loss_of(&outputs, &self.batch.labels, task).unwrap()
            }
            _ => outputs.get::<3>("last_hidden_state").unwrap().square().mean(),
        };
        let gradients = self.module.gradients(&mut loss.backward());
        let tensors = self.adapter.tensors.iter();
        let of = tensors.filter_map(|t| Some((t.key.clone(), t.param.gradient(&gradients)?.to_data())));
        (loss.without_autodiff().into_data(), of.collect(), self.calls.lock().unwrap().len())
    }

    /// The layer that each adapted linear layer is in; none for those outside.
    fn layers(&self) -> impl Iterator<Item = Option<usize>> {
        let number = |name: &str| name.split('.').find_map(|part| part.parse().ok());
        self.adapter.plan.adapted.iter().map(move |adapted| number(&adapted.module))
    }

    /// Whether there is a layer above the lowest that is adapted, and its family runs layers again.
    fn runs_again(&self) -> bool {
        let layers: BTreeSet<_> = self.layers().flatten().collect();
        let info = self.model.info();
        info.supports_checkpointing && (layers.len() > 1 || info.shift_right.is_some())
    }
}

#[rstest]
fn layers_that_run_again_give_the_same_gradients(#[files("golden/*/expected.json")] facts: PathBuf) {
    let case = facts.parent().unwrap();
    let run = Run::new(case, |_| {});
    let (loss, gradients, calls) = run.gradients(0);
    assert!(gradients.values().any(|gradient| floats(gradient).iter().any(|value| *value != 0.0)));
    for checkpointed in [2, usize::MAX] {
        let (same_loss, same, more_calls) = run.gradients(checkpointed);
        assert_eq!(loss, same_loss);
        assert_eq!(gradients.keys().collect::<Vec<_>>(), same.keys().collect::<Vec<_>>());
        // The layers of a decoder add up what an encoder's states get, in another order.
        let is_summed = run.model.info().shift_right.is_some();
        for (key, gradient) in &gradients {
            if !is_summed {
                assert_eq!(gradient, &same[key], "{key}");
            }
            for (a, b) in floats(gradient).iter().zip(floats(&same[key])) {
                assert!((a - b).abs() <= 1e-7 + 1e-5 * b.abs(), "{key}: {a} against {b}");
            }
        }
        // A classifier of whole texts lets one token alone through the last layer, which is not run again then.
        let is_classifier = run.adapter.config.task_type.as_ref().is_some_and(|task| task.as_str() == "SEQ_CLS");
        if checkpointed == usize::MAX && run.runs_again() && !is_classifier {
            assert!(more_calls > calls, "{more_calls} calls, {calls} without");
        }
    }
}

#[rstest]
fn nothing_below_the_lowest_adapted_layer_is_part_of_a_graph(
    // Without a head a layer's name begins with `layers`, and `layers_to_transform` wants something before it.
    #[files("golden/*.default/expected.json")]
    #[exclude("none|FEATURE_EXTRACTION")]
    facts: PathBuf,
    #[values(0, usize::MAX)] checkpointed: usize,
) {
    let case = facts.parent().unwrap();
    let last = Run::new(case, |_| {}).layers().flatten().max().unwrap();
    let run = Run::new(case, |config| {
        config.options.insert("layers_to_transform".to_owned(), last.into());
    });
    let (_, gradients, _) = run.gradients(checkpointed);
    assert!(!gradients.is_empty());
    // The first adapted linear layer reads what the layers below have made, at most normalised.
    assert!(!run.calls.lock().unwrap()[0]);
}
