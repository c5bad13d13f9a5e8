//! The scenarios: each drives real processes, then holds what it expected against what the backends' journal says.

mod brokers;
mod killed_broker;
mod one_broker;
mod stopped_broker;
mod verdict;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use spawn_gate::BoxError;

use crate::report::Check;
use crate::scene::Scene;
use crate::stage::Stage;

/// A budget window that no scenario sees the end of.
const LONG: Duration = Duration::from_secs(30);

pub(crate) struct Scenario {
    pub(crate) title: &'static str,
    play: for<'a> fn(&'a Scene) -> Playing<'a>,
}

type Playing<'a> = Pin<Box<dyn Future<Output = Result<Vec<Check>, BoxError>> + Send + 'a>>;

pub(crate) const ALL: &[Scenario] = &[
    Scenario {
        title: "1 cold start, 300 clients",
        play: |scene| Box::pin(one_broker::cold_start(scene)),
    },
    Scenario {
        title: "2 three services at once",
        play: |scene| Box::pin(one_broker::three_services(scene)),
    },
    Scenario {
        title: "3 a backend that always fails",
        play: |scene| Box::pin(one_broker::always_fails(scene)),
    },
    Scenario {
        title: "4 clients hang up mid-launch",
        play: |scene| Box::pin(one_broker::hang_ups(scene)),
    },
    Scenario {
        title: "5 launch outlasts its window",
        play: |scene| Box::pin(one_broker::longer_than_window(scene)),
    },
    Scenario {
        title: "6 lock file is replaced",
        play: |scene| Box::pin(one_broker::lock_file_replaced(scene)),
    },
    Scenario {
        title: "7 four brokers, one cold start",
        play: |scene| Box::pin(brokers::cold_start(scene)),
    },
    Scenario {
        title: "8 four brokers, always fails",
        play: |scene| Box::pin(brokers::always_fails(scene)),
    },
    Scenario {
        title: "9 an operator resets",
        play: |scene| Box::pin(brokers::operator_resets(scene)),
    },
    Scenario {
        title: "10 launching broker is killed",
        play: |scene| Box::pin(killed_broker::killed(scene)),
    },
    Scenario {
        title: "11 launching broker is stopped",
        play: |scene| Box::pin(stopped_broker::stopped(scene)),
    },
];

impl Scenario {
    /// Plays it. One that cannot be played to its end differs from what was expected, too.
    pub(crate) async fn play(&self, stage: &Arc<Stage>, directory: &str) -> Vec<Check> {
        stage.report.heading(self.title);
        let played = async {
            let scene = Scene::new(Arc::clone(stage), directory)?;
            (self.play)(&scene).await
        };
        played
            .await
            .unwrap_or_else(|error: BoxError| vec![Check::same("plays to its end", error)])
    }
}
