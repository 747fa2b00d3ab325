//! What the README's second tutorial shows works. (That its code compiles is a doc test of this package's library.)
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod commands {
    use quilt_plugin_api::testing::{Harness, Outcome};
    use quilt_plugin_api::{Command, RoleContext, RoleError, role};
    use schemars::JsonSchema;
    use serde::{Deserialize, Serialize};

    // The second tutorial, as it stands in the README.
    #[derive(Serialize, Deserialize, JsonSchema, Command)]
    #[command(group = "Janitor's work", reply = Swept, error = SweepError)]
    pub(crate) struct Sweep {
        pub(crate) older_than_days: u64,
    }

    #[derive(Serialize, Deserialize, JsonSchema, Debug, PartialEq)]
    pub(crate) struct Swept {
        pub(crate) files: u64,
    }

    #[derive(Serialize, Deserialize, JsonSchema, Debug, PartialEq, thiserror::Error)]
    pub(crate) enum SweepError {
        #[error("the folder cannot be read: {0}")]
        Unreadable(String),
    }

    #[derive(Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    pub(crate) struct JanitorConfig {
        dir: std::path::PathBuf,
    }

    pub(crate) struct Janitor {
        config: JanitorConfig,
    }

    /// Keeps a folder tidy.
    #[role(name = "janitor", instances = 1)]
    impl Janitor {
        async fn start(config: JanitorConfig, _: &RoleContext) -> Result<Self, RoleError> {
            Ok(Self { config })
        }

        /// Removes what is older and says how many files went.
        #[command]
        async fn sweep(&mut self, request: Sweep) -> Result<Swept, SweepError> {
            let age = std::time::Duration::from_secs(request.older_than_days * 86_400);
            let unreadable = |error: std::io::Error| SweepError::Unreadable(error.to_string());
            let mut files = 0;
            for entry in std::fs::read_dir(&self.config.dir).map_err(unreadable)?.flatten() {
                let modified = entry.metadata().and_then(|meta| meta.modified()).map_err(unreadable)?;
                if modified.elapsed().is_ok_and(|passed| passed > age) {
                    files += u64::from(std::fs::remove_file(entry.path()).is_ok());
                }
            }
            Ok(Swept { files })
        }
    }

    #[tokio::test]
    async fn the_tutorials_command_does_what_it_says() {
        let [folder, state] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        std::fs::write(folder.path().join("old"), "x").unwrap();
        let config = serde_json::json!({ "dir": folder.path() });
        let janitor = Harness::start::<Janitor>(config, state.path()).await.unwrap();
        assert_eq!(janitor.call(Sweep { older_than_days: 1 }).await, Outcome::Reply(Swept { files: 0 }));
        assert_eq!(janitor.call(Sweep { older_than_days: 0 }).await, Outcome::Reply(Swept { files: 1 }));
        std::fs::remove_dir(folder.path()).unwrap();
        let Outcome::Error(SweepError::Unreadable(text)) = janitor.call(Sweep { older_than_days: 0 }).await else {
            panic!("it should be unreadable")
        };
        assert!(text.contains("No such file"), "{text}");
    }
}
