"""Lab machines: the playbook, the Vagrantfile, the workflow for CI."""
