//! The seam between the agent and the kernel: what the keeper asks of [`Redirect`], so that tests
//! can stand in for it.

use std::path::PathBuf;

use crate::redirect::Counters;
use crate::redirect::EnrolledPod;
use crate::redirect::Enrolment;
use crate::redirect::PodNetns;
use crate::redirect::PodSettings;
use crate::redirect::Redirect;
use crate::redirect::RedirectError;
use crate::redirect::Repairs;
use crate::redirect::Status;

/// Redirection of the node's pods. Every method is as the one of [`Redirect`] of that name.
#[allow(missing_docs, reason = "documented at Redirect")]
pub trait Redirector: Send + Sync + 'static {
    fn enrol(&self, pod: PodNetns<'_>) -> Result<Enrolment, RedirectError>;
    fn update(&self, cookie: u64, settings: &PodSettings) -> Result<(), RedirectError>;
    fn release(&self, cookie: u64) -> Result<(), RedirectError>;
    fn enrolled(&self) -> Result<Vec<EnrolledPod>, RedirectError>;
    fn reconcile(&self) -> Result<Repairs, RedirectError>;
    fn canary(&self) -> Result<(), RedirectError>;
    fn set_proxy_cgroups(&self, cgroups: &[PathBuf]) -> Result<(), RedirectError>;
    fn counters(&self) -> Result<Counters, RedirectError>;
    fn status(&self) -> Result<Status, RedirectError>;
}

impl Redirector for Redirect {
    fn enrol(&self, pod: PodNetns<'_>) -> Result<Enrolment, RedirectError> {
        Redirect::enrol(self, pod)
    }

    fn update(&self, cookie: u64, settings: &PodSettings) -> Result<(), RedirectError> {
        Redirect::update(self, cookie, settings)
    }

    fn release(&self, cookie: u64) -> Result<(), RedirectError> {
        Redirect::release(self, cookie)
    }

    fn enrolled(&self) -> Result<Vec<EnrolledPod>, RedirectError> {
        Redirect::enrolled(self)
    }

    fn reconcile(&self) -> Result<Repairs, RedirectError> {
        Redirect::reconcile(self)
    }

    fn canary(&self) -> Result<(), RedirectError> {
        Redirect::canary(self)
    }

    fn set_proxy_cgroups(&self, cgroups: &[PathBuf]) -> Result<(), RedirectError> {
        Redirect::set_proxy_cgroups(self, cgroups)
    }

    fn counters(&self) -> Result<Counters, RedirectError> {
        Redirect::counters(self)
    }

    fn status(&self) -> Result<Status, RedirectError> {
        Redirect::status(self)
    }
}
