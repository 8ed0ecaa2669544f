// Before the first paint: the theme that was chosen here, if any; else that of the system.
document.documentElement.dataset.theme = localStorage.getItem("raft-theme") ?? "system";
