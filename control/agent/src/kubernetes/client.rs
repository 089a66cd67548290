//! The client of an API server: of the pod's service account, or of a kubeconfig file.

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use super::access::Access;
use crate::config::Kubernetes;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);

/// Whether there is what a client is made of.
///
/// # Errors
/// What is missing, and what to do.
pub fn check(settings: &Kubernetes) -> Result<(), String> {
    match &settings.kubeconfig {
        Some(file) => read(file).map(drop),
        None => Config::incluster().map(drop).map_err(not_in_a_cluster),
    }
}

/// Made anew after each failure: certificates and tokens in the file may have been renewed.
pub(super) async fn connect(access: &Access) -> Result<Client, String> {
    let mut config = match &access.settings.kubeconfig {
        Some(file) => {
            let options = KubeConfigOptions::default();
            let made = Config::from_custom_kubeconfig(read(file)?, &options).await;
            made.map_err(|error| unusable(file, &error))?
        }
        None => Config::incluster().map_err(not_in_a_cluster)?,
    };
    access.go_past_ourselves(&mut config)?;
    config.connect_timeout = Some(CONNECT);
    // It is tried again by who follows, who knows how long to wait.
    config.default_retry = false;
    Client::try_from(config).map_err(|error| said(&error))
}

/// Whether an API server answers, be it that it refuses.
pub async fn answers(access: &Access) -> bool {
    let Ok(client) = connect(access).await else { return false };
    matches!(client.apiserver_version().await, Ok(_) | Err(kube::Error::Api(_)))
}

fn read(file: &Path) -> Result<Kubeconfig, String> {
    Kubeconfig::read_from(file).map_err(|error| unusable(file, &error))
}

fn unusable(file: &Path, error: &dyn Error) -> String {
    let file = file.display();
    format!(
        "kubeconfig {file} cannot be used: {}; expected one that `kubectl --kubeconfig {file} get nodes` takes",
        said(error)
    )
}

fn not_in_a_cluster(error: impl Error) -> String {
    format!(
        "{}; in a pod it needs a service account (automountServiceAccountToken), elsewhere \
         `kubernetes: {{kubeconfig: FILE}}`",
        said(&error)
    )
}

/// An error with its causes.
pub(super) fn said(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
