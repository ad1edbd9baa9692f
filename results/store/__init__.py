"""The run store on disk, the plans of suites in it, and evidence that git keeps."""
